"""Complete runs on the hosts of the network lab, started by ``zmqrl launch`` over ssh."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from support.commands import ran
from support.lab import Lab
from support.paths import ROOT
from support.rig import ending, eventually
from support.run_rig import WITHIN_S, Run, RunFiles, launching, started
from support.terminal import on_a_terminal

import zmqrl
from zmqrl.commands.run import launch
from zmqrl.commands.run.launch import Options, directory_name, on_hosts
from zmqrl.errors import ClusterError
from zmqrl.hosts import deployment as deployment_module
from zmqrl.hosts import preflight
from zmqrl.hosts.connecting import connect as connect_links
from zmqrl.hosts.link import Link
from zmqrl.hosts.reach import over_tcp
from zmqrl.recipes import cartpole
from zmqrl.rundir import RunDirectory
from zmqrl.start.stages import Stages

pytestmark = pytest.mark.processes


def no_process_on(lab: Lab) -> bool:
    return not any(lab.processes(host) for host in lab.hosts)


def directory_on(host: str, run: Run) -> Path:
    """The directory of a run on a host. The lab and this machine share their disks."""
    name = directory_name(RunDirectory(run.files.path), socket.gethostname())
    return Path(f"/var/tmp/zmqrl-{os.getuid()}", host, name)


def has_files(run: Run) -> list[str]:
    """The hosts on which the run has left its directory."""
    return [host for host in ("h1", "h2", "h3", "h4") if directory_on(host, run).exists()]


def has_ranks(run: Run, ranks: set[int], shard: int = 0) -> Callable[[], bool]:
    """Whether the newest lines of a shard's history name exactly these ranks."""
    return lambda: {rank for line in run.files.history(shard)[-5:] for rank in line["ranks"]} == ranks


def test_a_run_on_four_hosts_learns_and_ends_and_its_files_are_copied_back(lab: Lab, tmp_path: Path) -> None:
    options = ("--workers", "4", "--shards", "2", "--stop-score", "100", "--profile", "20", "--evaluator")
    with launching(lab, tmp_path / "run", *options, "--evaluation.episodes", "4") as run:
        run.eventually(lambda: run.files.path.joinpath("cluster.json").exists(), "cluster.json")
        cluster = run.files.cluster()
        assert {entry["host"] for entry in cluster["workers"]} == set(lab.hosts)
        assert [entry["host"] for entry in cluster["shards"]] == ["h1", "h2"]
        assert cluster["keys"] is not None, "what crosses the network is not encrypted"
        assert cluster["shards"][1]["grad"].startswith(f"tcp://{lab.address('h2')}:")
        assert run.wait(within_s=120) == 0, run.said()
    summary = run.files.assert_summary_exact("stop_score", quorum=4)
    assert summary["score_mean_50"] >= 100
    run.files.assert_history_exact(summary["updates"], quorum=4)
    assert "evaluation of version" in run.said()
    assert (run.files.path / "trace.json").stat().st_size > 1000
    assert "is present" in run.files.log("shard-1")
    eventually(lambda: no_process_on(lab), "the end of every process", 15)
    assert has_files(run) == []


def test_pong_on_four_hosts_makes_thirty_updates(lab: Lab, tmp_path: Path) -> None:
    script = ROOT / "launch" / "ssh.sh"
    command = [str(script), ",".join(lab.hosts), "pong", "--ssh-config", str(lab.ssh_config)]
    options = ["--run-dir", str(tmp_path / "run"), "--workers", "4", "--updates", "30"]
    small = ["--envs.num-envs", "2", "--ppo.rollout-steps", "32", "--ppo.epochs", "1", "--ppo.minibatches", "2"]
    program = {"ZMQRL": str(Path(sys.executable).with_name("zmqrl"))}
    done = ran([*command, *options, *small], within_s=150, env=os.environ | program)
    assert done.stdout.index("worker-3") < done.stdout.index("run directory"), "what would run where is shown first"
    files = RunFiles(tmp_path / "run")
    summary = files.assert_summary_exact("updates", quorum=4)
    assert (summary["env"], summary["updates"]) == ("ALE/Pong-v5", 30)
    files.assert_history_exact(30, quorum=4)
    # Each worker makes two updates from each rollout of 32 steps in 2 games.
    assert summary["agent_steps"] >= 15 * 4 * 64


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_on_any_host_when_the_launcher_ends(lab: Lab, tmp_path: Path, number: signal.Signals) -> None:
    with launching(lab, tmp_path / "run", "--workers", "4") as run:
        run.wait_to_say("contributions")
        run.signal(number)
        assert run.wait() == {signal.SIGKILL: -9, signal.SIGINT: 130}[number]
        eventually(lambda: no_process_on(lab), "the end of every process", 15)


@pytest.fixture(params=[pytest.param(None, marks=pytest.mark.slow), pytest.param("lab", marks=pytest.mark.lab)])
def lab_or_here(request: pytest.FixtureRequest) -> Lab | None:
    """The lab, or None if each host is this machine under another name."""
    return None if request.param is None else request.getfixturevalue("lab")


def killed_on_h1_and_h2(lab: Lab | None, path: Path) -> Run:
    """A run whose launcher was killed. Each host has a shard and a worker."""
    with launching(lab, path, "--workers", "2", "--shards", "2", "--straggle", "0:0.02", hosts="h1,h2") as run:
        run.wait_for(20)
        run.signal(signal.SIGKILL)
        run.wait()
    return run


# A game that fails in workers, but not in the checks before the run.
FAILS = """
import sys
import gymnasium

class Fails(gymnasium.Wrapper):
    def step(self, action):
        if sys.argv[0].endswith("worker.py"):
            raise ValueError("the game broke")
        return super().step(action)
"""


@pytest.mark.slow
def test_a_run_that_fails_leaves_no_files_on_its_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails.py").write_text(FAILS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    with launching(None, tmp_path / "run", "--wrapper", "fails:Fails") as run:
        run.eventually(lambda: len(has_files(run)) == 2, "files on both hosts")
        assert run.wait() == 2, run.said()
    assert "the game broke" in run.complaint()
    run.files.assert_summary_exact("failed", failed=2)
    assert not (run.files.path / "left.json").exists()
    assert has_files(run) == []


@pytest.mark.slow
def test_a_run_that_is_interrupted_twice_leaves_no_files_on_its_hosts(tmp_path: Path) -> None:
    # Workers that sleep for a minute delay the end of the run.
    with launching(None, tmp_path / "run", "--straggle", "0:60", "--straggle", "1:60") as run:
        run.eventually(lambda: run.files.log("shard-0").count("is present") == 2, "the workers")
        run.signal(signal.SIGINT)
        run.eventually(run.files.has_last_checkpoint, "the last checkpoint")
        time.sleep(1.0)  # until the run waits for its workers
        assert len(has_files(run)) == 2
        run.signal(signal.SIGINT)
        assert run.wait(within_s=45) == 130, run.said()
        assert run.complaint() == ""
    assert not (run.files.path / "left.json").exists()
    assert has_files(run) == []


@pytest.mark.parametrize("others", ["h2,h1,h3", "h3,h4"])
def test_a_run_with_a_killed_launcher_resumes_on_other_hosts_from_the_state_of_its_shards(
    lab_or_here: Lab | None, tmp_path: Path, others: str
) -> None:
    run = killed_on_h1_and_h2(lab_or_here, path := tmp_path / "run")
    killed_at = run.files.version()
    assert run.files.newest().version == 0, "the run must be killed before its second checkpoint"
    # State and histories are on h1 and h2, but the shards now run on other hosts.
    with launching(lab_or_here, path, "--resume", "--minutes", "0.03", hosts=others) as run:
        assert run.wait(within_s=120) == 0, run.said()
    resumed_at = int(run.said().partition("resuming from version ")[2].split()[0])
    summary = run.files.assert_summary_exact("minutes")
    assert killed_at <= resumed_at < summary["updates"]
    run.files.assert_history_exact(summary["updates"])
    run.files.assert_contributions_exact()
    assert has_files(run) == []


def test_a_run_whose_state_is_lost_resumes_on_other_hosts_under_a_new_generation(
    lab_or_here: Lab | None, tmp_path: Path
) -> None:
    run = killed_on_h1_and_h2(lab_or_here, path := tmp_path / "run")
    generation, version = run.files.generation(1), run.files.version()
    shutil.rmtree(directory_on("h2", run) / "state")
    with launching(lab_or_here, path, "--resume", "--updates", "10", hosts="h3,h4") as run:
        assert run.wait(within_s=120) == 0, run.said()
    assert "resuming from version 0" in run.said()
    assert "everything after version 0 is lost: there is no state in " in run.said()
    run.files.assert_summary_exact("updates")
    run.files.assert_history_exact(10)
    run.files.assert_contributions_exact()
    assert run.files.generation(1) > generation, "a shard could mistake lines of the first session for newer ones"
    (undone,) = (path / "history").glob("shard-1.before-generation-*.jsonl")
    assert len(undone.read_text().splitlines()) >= version


def test_a_run_resumes_on_the_same_hosts_without_naming_them_again(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with launching(lab, path, "--workers", "2", "--updates", "20", hosts="h3,h1") as run:
        assert run.wait(within_s=120) == 0, run.said()
    first = run.files.assert_summary_exact("updates")["hosts"]
    assert [(each["host"], each["processes"]) for each in first] == [
        ("h3", ["shard-0", "worker-0"]),
        ("h1", ["shard-1", "worker-1"]),
    ]
    assert all(each["python"] and each["torch"] and each["zmqrl"] and each["code"] for each in first)
    command = [sys.executable, "-m", "zmqrl", "launch", "--resume", str(path), "--updates", "40"]
    with started(command, path, {}) as run:
        assert run.wait(within_s=120) == 0, run.said()
    assert run.files.assert_summary_exact("updates")["hosts"] == first
    assert run.files.history(0)[-1]["version"] == 40


@pytest.mark.parametrize("fault", ["link", "blackhole"])
def test_a_run_continues_without_an_unreachable_host_and_uses_it_again_later(
    lab: Lab, tmp_path: Path, fault: str
) -> None:
    # The shards run on h1 and h2. h4 runs only worker 3.
    with launching(lab, tmp_path / "run", "--workers", "3", "--backups", "1", "--straggle", "0:0.02") as run:
        run.eventually(has_ranks_ever(run, {0, 1, 2, 3}), "all four workers")
        lab(fault, "h4", *{"link": ["down"], "blackhole": ["on"]}[fault])
        run.wait_to_say("host h4 is lost, with worker-3: ")
        run.eventually(has_ranks(run, {0, 1, 2}), "versions of the other workers")
        lab(fault, "h4", *{"link": ["up"], "blackhole": ["off"]}[fault])
        run.eventually(lambda: 3 in {rank for line in run.files.history(0)[-20:] for rank in line["ranks"]}, "worker 3")
        run.interrupt()
        run.files.assert_history_exact(run.files.summary()["updates"], quorum=3)


def has_ranks_ever(run: Run, ranks: set[int]) -> Callable[[], bool]:
    return lambda: {rank for line in run.files.history(0) for rank in line["ranks"]} == ranks


def test_a_shard_on_an_unreachable_host_comes_back_with_its_state(lab: Lab, tmp_path: Path) -> None:
    with launching(lab, tmp_path / "run", "--workers", "2", "--shards", "4") as run:
        run.eventually(lambda: len(run.files.history(3)) > 5, "some versions")
        lab.blackhole("h4", "on")
        run.wait_to_say("host h4 is lost")
        lab.blackhole("h4", "off")
        run.wait_to_say("shard 3 is back at version")
        version = len(run.files.history(0))
        run.eventually(lambda: len(run.files.history(0)) > version + 5, "more versions")
        run.interrupt()
        assert "go back" not in run.said()
        run.files.assert_history_exact(run.files.summary()["updates"], shards=4, quorum=2)


@pytest.mark.parametrize(("options", "readable"), [((), False), (("--wire.insecure-plaintext",), True)])
def test_the_weights_cannot_be_read_on_the_network_unless_encryption_is_off(
    lab: Lab, tmp_path: Path, need_programs: Callable[..., None], options: tuple[str, ...], readable: bool
) -> None:
    need_programs("tcpdump")
    capture = tmp_path / "capture"
    dump = ["ip", "netns", "exec", lab.slot.name, "tcpdump", "-i", "any", "-s", "0", "-U", "-w", str(capture)]
    with ending(subprocess.Popen(dump, stderr=subprocess.DEVNULL)) as dumping:
        with launching(lab, tmp_path / "run", "--workers", "2", "--updates", "30", *options) as run:
            assert run.wait() == 0, run.said()
        dumping.terminate()
        dumping.wait(WITHIN_S)
    seen = capture.read_bytes()
    # The capture has all traffic through the switch: both slices of every version, sent to workers on other hosts.
    last = run.files.newest()
    for state, cut in zip(last.states, last.layout.slices, strict=True):
        weights = state[: 4 * cut.count]
        assert readable == any(weights[start : start + 64] in seen for start in range(0, len(weights) - 64, 64))
    assert readable == (b"zmqrl/1" in seen)


def test_an_error_names_all_unusable_hosts_and_nothing_is_started(lab: Lab, tmp_path: Path) -> None:
    lab("refuse", "h2", "22", "on")
    with launching(lab, tmp_path / "run", hosts="h1,h2,h9") as run:
        assert run.wait() == 3
        assert run.complaint().startswith("zmqrl: 2 of 3 hosts cannot be used:\n  h2: ")
        assert "\n  h9: " in run.complaint()
        assert not (run.files.path / "config.json").exists()
    eventually(lambda: no_process_on(lab), "the end of the host daemons", 15)
    assert has_files(run) == []


def test_a_host_with_different_code_is_refused(lab: Lab, tmp_path: Path) -> None:
    package = Path(zmqrl.__file__).parent
    shutil.copytree(package, lab.shared / "changed" / "zmqrl", ignore=shutil.ignore_patterns("__pycache__"))
    with (lab.shared / "changed" / "zmqrl" / "errors.py").open("a") as file:
        file.write("# another version\n")
    python = lab.shared / "python-of-others"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={lab.shared}/changed exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    hosts = tmp_path / "hosts.toml"
    hosts.write_text(f'[[host]]\nname = "h1"\n[[host]]\nname = "h2"\npython = "{python}"\n')
    with launching(lab, tmp_path / "run", hosts=str(hosts)) as run:
        assert run.wait() == 3
        assert run.complaint().startswith("zmqrl: h2: zmqrl there (")
    eventually(lambda: not has_files(run), "the hosts are as before")


def test_zmqrl_is_installed_on_hosts_that_lack_it(lab: Lab, tmp_path: Path) -> None:
    bare = lab.shared / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True, timeout=WITHIN_S)
    places = [sysconfig.get_path("purelib", "venv", {"base": base}) for base in (sys.prefix, str(bare))]
    # The new Python finds the installed packages through others.pth. The new Python does not find the checkout, because
    # Python ignores the .pth files in the directories that a .pth file adds.
    Path(places[1], "others.pth").write_text(f"{places[0]}\n")
    hosts = tmp_path / "hosts.toml"
    hosts.write_text(f'[defaults]\npython = "{bare}/bin/python"\n[[host]]\nname = "h[1-2]"\n')
    for path, made in (("run", True), ("again", False)):
        options = ("--sync", "wheel", "--workers", "2", "--shards", "2", "--updates", "20")
        with launching(lab, tmp_path / path, *options, hosts=str(hosts)) as run:
            assert run.wait() == 0, run.said()
        assert ("h2: making /root/.cache/zmqrl/envs/" in run.said()) == made
        run.files.assert_history_exact(20)
    eventually(lambda: no_process_on(lab), "the end of every process", 15)


def test_a_dry_run_shows_the_placement_and_starts_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zmqrl", "launch", "-H", "a,b:3", "--dry-run", "cartpole", "--workers", "4"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=WITHIN_S).stdout
    assert "worker-[1-3]" in said
    assert said.count("-m zmqrl.hostd.daemon") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_with_sync_shows_that_localhost_uses_the_python_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.command(["-H", "localhost,h1", "--sync", "wheel", "--dry-run", "cartpole"]) == 0
    *_, first, here, there = capsys.readouterr().out.splitlines()
    assert first.startswith("--sync makes an environment on each other host first")
    assert here.startswith(f"{sys.executable} ")
    assert "'exec python3 " in there


@pytest.mark.usefixtures("ssh_to_here")
def test_the_stages_of_a_deployment_are_shown(tmp_path: Path) -> None:
    shown: list[tuple[object, ...]] = []
    options = Options(hosts="h1:2", address=("h1=127.0.0.1",))
    stages = SimpleNamespace(at=lambda *stage: shown.append(stage))
    directory, config = RunDirectory(tmp_path / "run"), over_tcp(dataclasses.replace(cartpole(), workers=1, shards=1))
    deployment = on_hosts(options, options.reach(), config, directory, cast(Stages, stages))
    deployment.files.clean(whole=True)
    deployment.launcher.close()
    assert list(dict.fromkeys(shown)) == [
        ("connecting", "connecting to 1 host", 0, 1),
        ("connecting", "connecting to 1 host", 1, 1),
        ("checking", "checking 1 host"),
    ]


def test_a_command_that_still_waits_for_its_host_ends_with_an_interrupted_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[subprocess.Popen[bytes]] = []

    def connect(links: list[Link], *_: object, **__: object) -> None:
        for link in links:
            link.open()
            assert link.process is not None
            opened.append(link.process)
        raise KeyboardInterrupt

    monkeypatch.setattr(deployment_module, "connect", connect)
    options = Options(hosts="h1", via="sh -c 'exec sleep 600' {host}")
    stages = SimpleNamespace(at=lambda *stage: None)
    directory, config = RunDirectory(tmp_path / "run"), over_tcp(dataclasses.replace(cartpole(), workers=1, shards=1))
    with pytest.raises(KeyboardInterrupt):
        on_hosts(options, options.reach(), config, directory, cast(Stages, stages))
    assert [process.poll() for process in opened] == [-signal.SIGKILL]


@pytest.mark.usefixtures("ssh_to_here")
def test_a_launch_that_is_interrupted_after_all_checks_ends_its_daemons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: list[Link] = []

    def connect(opened: list[Link], *arguments: Any, **options: Any) -> dict[str, str]:
        links.extend(opened)
        return connect_links(opened, *arguments, **options)

    def interrupted(**_: object) -> None:
        assert all(link.is_ready for link in links)
        raise KeyboardInterrupt

    monkeypatch.setattr(deployment_module, "connect", connect)
    monkeypatch.setattr(launch, "Site", interrupted)
    options = Options(hosts="h1", address=("h1=127.0.0.1",), preflight=False)
    stages = SimpleNamespace(at=lambda *stage: None)
    directory, config = RunDirectory(tmp_path / "run"), over_tcp(dataclasses.replace(cartpole(), workers=1, shards=1))
    with pytest.raises(KeyboardInterrupt):
        on_hosts(options, options.reach(), config, directory, cast(Stages, stages))
    assert [link.process for link in links] == [None]


@pytest.mark.usefixtures("ssh_to_here")
def test_a_launch_on_unfit_hosts_ends_only_after_its_daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links, shown = list[Link](), list[tuple[object, ...]]()

    def judge(*_: object) -> preflight.Judgement:
        return preflight.Judgement(problems=["h1: it is too small."])

    def connect(opened: list[Link], *arguments: Any, **options: Any) -> dict[str, str]:
        links.extend(opened)
        return connect_links(opened, *arguments, **options)

    monkeypatch.setattr(preflight, "judge", judge)
    monkeypatch.setattr(deployment_module, "connect", connect)
    options = Options(hosts="h1", address=("h1=127.0.0.1",))
    stages = SimpleNamespace(at=lambda *stage: shown.append(stage))
    directory, config = RunDirectory(tmp_path / "run"), over_tcp(dataclasses.replace(cartpole(), workers=1, shards=1))
    reach = options.reach()
    with pytest.raises(ClusterError, match="it is too small"):
        on_hosts(options, reach, config, directory, cast(Stages, stages))
    assert [link.process for link in links] == [None]
    assert shown[-1] == ("ending", "ending the daemons on 1 host")
    directories = Path(f"/var/tmp/zmqrl-{os.getuid()}", socket.gethostname())
    assert not (directories / directory_name(directory, reach.home)).exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ssh_to_here")
def test_a_launch_on_a_terminal_shows_its_stages_until_the_panel_has_figures(tmp_path: Path) -> None:
    options = ("--workers", "1", "--shards", "1", "--updates", "30", "--run-dir", str(tmp_path / "run"))
    with on_a_terminal("launch", "-H", "h1", "--address", "h1=127.0.0.1", "cartpole", *options) as terminal:
        for words in ("starting: game (", "starting: game, connecting", "connecting 1/1, checking", "contributions"):
            terminal.has_said(words)
        assert terminal.wait() == 0, terminal.said
