"""The manifest in ``launch/kubernetes/``, and the kubectl and docker commands of zmqrl. Stand-ins replace both
programs.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import ran
from support.paths import ROOT

from zmqrl.hosts.connecting import connect
from zmqrl.hosts.inventory import read_hosts
from zmqrl.hosts.reach import HostOptions

MANIFEST = ROOT / "launch" / "kubernetes" / "pods.yaml"
DOCUMENT = ROOT / "docs" / "cluster.md"
# Records its arguments, and then runs the command for the container here.
STAND_IN = """#!{python}
import json, os, sys
words = sys.argv[1:]
with open({record!r}, "a") as file:
    file.write(json.dumps(words) + "\\n")
os.execvp({python!r}, words[words.index({python!r}):])
"""
# Records its arguments, and prints the names of two pods as kubectl does.
LISTS_PODS = "echo \"$*\" >> '{record}'; printf 'mine-0\\nmine-1\\n'"


def resources() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in resources() if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


@pytest.mark.parametrize("version", ["1.29", "1.34"])
def test_the_manifest_follows_the_schema_of_kubernetes(version: str, need_modules: Callable[..., None]) -> None:
    need_modules("kubernetes_validate")
    import kubernetes_validate

    for resource in resources():
        kubernetes_validate.validate(resource, version, strict=True)


def test_the_parts_of_the_manifest_fit_together() -> None:
    hosts, launcher = named("StatefulSet", "zmqrl"), named("StatefulSet", "zmqrl-launcher")
    service = named("Service", "zmqrl")
    assert service["spec"]["clusterIP"] == "None"
    for pods in (hosts, launcher):
        labels = pods["spec"]["template"]["metadata"]["labels"]
        assert pods["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert service["spec"]["selector"].items() <= labels.items()
        assert pods["spec"]["serviceName"] == "zmqrl"
        spec = pods["spec"]["template"]["spec"]
        volumes = {each["name"] for each in spec.get("volumes", [])}
        volumes |= {each["metadata"]["name"] for each in pods["spec"].get("volumeClaimTemplates", [])}
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    account = launcher["spec"]["template"]["spec"]["serviceAccountName"]
    assert named("RoleBinding", account)["subjects"] == [{"kind": "ServiceAccount", "name": account}]
    assert named("RoleBinding", account)["roleRef"]["name"] == named("Role", account)["metadata"]["name"]
    verbs = {name: rule["verbs"] for rule in named("Role", account)["rules"] for name in rule["resources"]}
    assert verbs == {"pods": ["get", "list"], "pods/exec": ["create", "get"]}
    assert "serviceAccountName" not in hosts["spec"]["template"]["spec"], "hosts cannot use the API"


def test_pods_need_nothing_but_the_image_and_any_user_can_write_the_run_directory() -> None:
    images = {
        container["image"]
        for resource in resources()
        if resource["kind"] == "StatefulSet"
        for part in ("containers", "initContainers")
        for container in resource["spec"]["template"]["spec"].get(part, [])
    }
    assert images == {"IMAGE"}
    containerfile = (ROOT / "launch" / "container" / "Containerfile").read_text(encoding="utf-8")
    launcher = named("StatefulSet", "zmqrl-launcher")["spec"]["template"]["spec"]
    assert launcher["securityContext"]["fsGroup"] > 0
    assert "COPY --from=kubectl /bin/kubectl /usr/local/bin/" in containerfile


def test_the_documented_command_names_the_pods_of_the_manifest() -> None:
    replicas = named("StatefulSet", "zmqrl")["spec"]["replicas"]
    pods = f"zmqrl-[0-{replicas - 1}]"
    assert [host.name for host in read_hosts(pods)] == [f"zmqrl-{number}" for number in range(replicas)]
    document = DOCUMENT.read_text(encoding="utf-8")
    assert f"-H '{pods}' --via 'kubectl exec -i {{host}} --'" in document
    for kind in ("zmqrl", "zmqrl-launcher"):
        assert re.search(rf"kubectl rollout status statefulset/{kind}( |$)", document, re.MULTILINE)
    assert "kubectl exec -it zmqrl-launcher-0 --" in document


def test_the_documents_build_push_and_use_one_image() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    (built,) = re.findall(
        r"^podman build --target kubernetes -f launch/container/Containerfile -t (\S+) \.$", document, re.MULTILINE
    )
    assert re.findall(r"^podman push (\S+)$", document, re.MULTILINE) == [built]
    assert re.findall(r"sed 's\|IMAGE\|(\S+)\|' launch/kubernetes/pods\.yaml", document) == [built]
    assert f"sed 's|IMAGE|{built}|'" in MANIFEST.read_text(encoding="utf-8")


def test_a_list_of_pods_in_the_documents_has_only_running_pods() -> None:
    document = DOCUMENT.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"kubectl get pods ([^)]*)\)", document)
    assert commands
    assert all("--field-selector=status.phase=Running" in command for command in commands)


@pytest.mark.processes
def test_the_documented_command_lists_the_pods_with_a_label(tmp_path: Path) -> None:
    """A shell runs the command, and kubectl and zmqrl are stand-ins for the installed programs."""
    document = DOCUMENT.read_text(encoding="utf-8")
    (command,) = re.findall(r"^(zmqrl launch -H <\(kubectl get pods .*?)\n```", document, re.MULTILINE | re.DOTALL)
    for name, line in (
        ("kubectl", LISTS_PODS.format(record=tmp_path / "asked")),
        ("zmqrl", f'exec {sys.executable} -m zmqrl "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = ran(["bash", "-c", f"{command} --dry-run"], within_s=60, env=environment, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert [line.split()[3] for line in lines if line.startswith("kubectl exec -i ")] == ["mine-0", "mine-1"]
    selected = "get pods -l app=mine --field-selector=status.phase=Running --no-headers"
    assert (tmp_path / "asked").read_text() == f"{selected} -o custom-columns=:metadata.name\n"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("via", "host", "asked"),
    [
        ("kubectl exec -i {host} --", "zmqrl-0", ["exec", "-i", "zmqrl-0", "--"]),
        (
            "kubectl -n rl exec -i {host} -c zmqrl --",
            "zmqrl-0",
            ["-n", "rl", "exec", "-i", "zmqrl-0", "-c", "zmqrl", "--"],
        ),
        ("docker exec -i {host}", "a_container", ["exec", "-i", "a_container"]),
    ],
)
def test_a_container_is_asked_for_nothing_but_a_host_daemon(
    via: str, host: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, program = tmp_path / "record", tmp_path / via.split()[0]
    program.write_text(STAND_IN.format(python=sys.executable, record=str(record)), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("A_TOKEN", "a secret")
    reach = HostOptions(hosts=host, via=via, export=("A_TOKEN",)).reach()
    link = reach.link(reach.hosts[0], work=str(tmp_path / "a-run"), lease_s=8.0)
    try:
        assert connect([link]) == {}
        assert link.up is not None
        assert link.up.address is None, "only ssh tells the address"
    finally:
        link.cut()
    (words,) = (json.loads(line) for line in record.read_text(encoding="utf-8").splitlines())
    assert words == [*asked, sys.executable, "-P", "-m", "zmqrl.hostd.daemon"]
