"""The container file and the conda recipe: well formed, without CUDA, and with the requirements of the project."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import ran
from support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONTAINER = ROOT / "launch" / "container" / "Containerfile"
INSTRUCTIONS = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
ON_CONDA = {
    "gymnasium[classic-control]": "gymnasium-classic_control",
    "isal": "python-isal",
    "matplotlib": "matplotlib-base",
    "msgpack": "msgpack-python",
    "prometheus-client": "prometheus_client",
    "torch": "pytorch-cpu",
}


def instructions() -> list[tuple[str, str]]:
    """The instructions of the container file, each on one line, without comments."""
    text = re.sub(r"^#.*\n", "", CONTAINER.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_container_file_has_only_valid_instructions() -> None:
    found = instructions()
    assert {name for name, _ in found} == INSTRUCTIONS
    assert [name for name, _ in found[:2]] == ["ARG", "FROM"]
    for name, rest in found:
        if name in ("ENTRYPOINT", "CMD"):  # the form without a shell, so that Ctrl-C reaches zmqrl
            assert json.loads(rest)
        if name == "RUN":
            command = ["bash", "-n", "-c", rest]
            assert subprocess.run(command, capture_output=True, text=True, timeout=60).stderr == ""


def test_the_container_copies_files_that_exist_and_stages_that_come_before() -> None:
    stages: set[str] = set()
    for name, rest in instructions():
        if name == "FROM" and " AS " in rest:
            stages.add(rest.split(" AS ")[1])
        if name == "COPY":
            *sources, target = rest.split()
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in stages
            else:
                assert all((ROOT / source).exists() for source in sources)
            assert target.startswith("/")


def test_the_container_runs_as_an_ordinary_user_with_pinned_packages_for_cpus() -> None:
    text = CONTAINER.read_text(encoding="utf-8")
    *_, (_, user) = [each for each in instructions() if each[0] == "USER"]
    assert user not in ("root", "0")
    assert "-c /source/constraints.txt '/source[all]'" in text
    assert "whl/cpu" in text
    assert not re.search(r"nvidia|cuda:", text)
    assert "torch==" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_the_container_needs_only_files_that_the_package_is_built_from() -> None:
    copied = {source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]}
    assert {PROJECT["readme"], "LICENSE", "pyproject.toml", "zmqrl"} <= copied
    assert all(Path(file).parts[0] in copied for file in PROJECT["license-files"])


def test_the_script_for_containers_builds_every_stage_that_a_user_builds() -> None:
    script = (ROOT / ".ci" / "container").read_text(encoding="utf-8")
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("launch/**/*.md"), CONTAINER]
    named = {stage for page in pages for stage in re.findall(r"--target (\w+)", page.read_text(encoding="utf-8"))}
    assert named == set(re.findall(r"--target (\w+)", script)) == {"kubernetes"}
    assert "--entrypoint kubectl zmqrl:ci-kubernetes version --client" in script


@pytest.mark.slow
@pytest.mark.processes
def test_the_container_is_built_and_trains_where_a_builder_works() -> None:
    builders = [name for name in ("docker", "podman") if shutil.which(name)]
    if not any(subprocess.run([name, "info"], capture_output=True, timeout=60).returncode == 0 for name in builders):
        pytest.skip("no container builder works here")  # even if all other programs are required
    ran([ROOT / ".ci" / "container"], within_s=1500)


@pytest.fixture(scope="module")
def recipe() -> Any:
    return yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text(encoding="utf-8"))


def needs(requirements: list[str]) -> dict[str, str]:
    """The lowest version of each requirement, by its name on conda-forge."""
    found = (re.fullmatch(r"(([\w.-]+)(?:\[.*\])?)>=([^;]*)(;.*)?", each) for each in requirements)
    return {ON_CONDA.get(each[1], ON_CONDA.get(each[2], each[2])): each[3] for each in found if each is not None}


def test_the_conda_package_requires_what_the_project_requires(recipe: Any) -> None:
    run = dict(each.split(" >=") for each in recipe["requirements"]["run"] if " >=" in each)
    assert run == needs(PROJECT["dependencies"]) | {"python": PROJECT["requires-python"].removeprefix(">=")}
    extras = PROJECT["optional-dependencies"]
    names = re.findall(r"\w+", extras["all"][0])[1:]
    constrained = dict(each.split(" >=") for each in recipe["requirements"]["run_constraints"])
    assert constrained == needs([each for name in names for each in extras[name]])


def test_the_conda_recipe_is_complete(recipe: Any) -> None:
    assert set(recipe) == {"schema_version", "package", "source", "build", "requirements", "tests", "about"}
    assert recipe["package"]["name"] == PROJECT["name"]
    assert (ROOT / "packaging" / "conda" / recipe["source"]["path"] / "pyproject.toml").exists()
    (entry,) = recipe["build"]["python"]["entry_points"]
    assert entry.split(" = ") == next([name, place] for name, place in PROJECT["scripts"].items())
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["about"]["license_file"] == PROJECT["license-files"]
    assert recipe["about"]["summary"] == PROJECT["description"]
