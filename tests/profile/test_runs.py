"""Profiles of real runs with a deliberate delay. The first row of the blame table names its rank, host and span."""

import contextlib
import json
import os
import re
import signal
import socket as host_socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.commands import ran_zmqrl
from support.paths import ROOT
from support.rig import ending, is_alive
from support.run_rig import Run, RunFiles, trained, training
from support.traces import assert_valid

from zmqrl.commands.inspect.profile import read
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.profile.critical_path import WORK
from zmqrl.profile.profiler import SEGMENTS_KEPT
from zmqrl.profile.report import Analysis
from zmqrl.profile.tables import unpack

pytestmark = pytest.mark.processes

UPDATES = 64
HERE = host_socket.gethostname()
SLOW_ON_ONE_RANK = """
import contextlib
import os
import time
from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

FIRST = Path(__file__).with_name("slow")

class Slow(CartPoleEnv):
    def __init__(self, **options):
        super().__init__(**options)
        self.pause_s = 0.0
        if b"zmqrl.worker" in Path("/proc/self/cmdline").read_bytes():  # the supervisor makes one too
            pid = str(os.getpid())
            with contextlib.suppress(FileExistsError), FIRST.open("x") as file:
                file.write(pid)
            self.pause_s = 0.01 * (FIRST.read_text() == pid)

    def step(self, action):
        time.sleep(self.pause_s)
        return super().step(action)

gymnasium.register("Slow-v0", lambda **options: Slow(**options), max_episode_steps=500)
"""


@pytest.mark.slow
def test_the_report_includes_predictions_bytes_and_lag(straggling: RunFiles) -> None:
    found = json.loads(ran_zmqrl("profile", straggling.path, "--json").stdout)
    changes = {each["change"]: each["updates_per_s"] for each in found["what_if"]}
    assert changes["without rank 1"] > 1.5 * changes["as it was"]
    assert changes["straggle in half the time"] > 1.2 * changes["as it was"]
    assert all(isinstance(each["replay_error"], float) for each in found["what_if"])
    assert found["policy_lag"]["max"] >= found["policy_lag"]["mean"] >= 0
    received = found["traffic"]["0"]["received"]
    assert received == found["traffic"]["0"]["sent"] > 0
    assert received % (2 * UPDATES) == 0


def profile(files: RunFiles) -> dict[str, Any]:
    return Analysis.of(read(files.path)).to_json()


@pytest.fixture(scope="module")
def straggling(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    path = tmp_path_factory.mktemp("straggling") / "run"
    options = ("--workers", "2", "--shards", "2", "--updates", str(UPDATES), "--straggle", "1:0.1")
    return trained(path, *options, "--profile", "20")


def test_a_straggler_is_blamed_first(straggling: RunFiles) -> None:
    found = profile(straggling)
    assert found["updates"] == UPDATES
    first = found["blame"][0]
    assert (first["cause"], first["rank"], first["host"]) == ("straggle", 1, HERE)
    assert 0.1 * UPDATES * 0.9 <= first["seconds"] <= sum(step for step in [found["update_ms"]["mean"] * UPDATES / 1e3])
    assert found["kth"]["1"] > 0.9
    assert sum(found["path_ms"].values()) == pytest.approx(found["update_ms"]["mean"])
    assert found["clocks"] == {HERE: {"offset_ms": 0.0, "drift_ppm": 0.0, "error_ms": 0.0}}
    assert found["left_out"] == []
    for row in found["spans"]:
        assert row["p50"] <= row["p90"] <= row["p99"] <= row["p99.9"] <= row["max"]


@pytest.mark.slow
def test_the_totals_of_the_profile_are_those_of_the_summary(straggling: RunFiles) -> None:
    found, summary = profile(straggling), straggling.summary()
    ranks = found["ranks"].values()
    used = sum(each["inclusion"] for each in ranks) * summary["shards"] * found["updates"]
    assert used == pytest.approx(summary["contributions"]["used"])
    for outcome in ("late", "skipped"):
        assert sum(each[outcome] for each in ranks) == summary["contributions"][outcome]
    assert found["updates"] == summary["updates"]
    assert found["updates"] * found["update_ms"]["mean"] == pytest.approx(1e3 * summary["wall_s"], rel=0.2)


def test_each_process_recorded_every_version(straggling: RunFiles) -> None:
    tables = read(straggling.path)
    assert [str(each.process) for each in tables.processes] == ["shard-0", "shard-1", "worker-0", "worker-1"]
    for each in tables.of_role("worker"):
        assert each.table("cycles")["version"].tolist() == list(range(UPDATES))
        assert each.histograms()["gradient"].count == UPDATES
    for each in tables.of_role("shard"):
        assert each.table("versions")["version"].tolist() == list(range(UPDATES + 1))
        assert sorted(each.table("arrivals")["rank"].tolist()) == [0] * UPDATES + [1] * UPDATES
        assert each.histograms()["optimize"].count == UPDATES


@pytest.mark.slow
def test_the_command_prints_a_report_writes_files_and_compares_runs(straggling: RunFiles, tmp_path: Path) -> None:
    run = straggling.path
    shown = ran_zmqrl("profile", run, "--trace", tmp_path / "t.json", "--plot", tmp_path / "p.png")
    blame = shown.stdout.partition("causes of delay")[2].splitlines()[2]
    assert blame.split()[:4] == ["straggle", "rank", "1", HERE]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    for trace in (tmp_path / "t.json", straggling.path / "trace.json"):
        assert_valid(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])
    found = json.loads(ran_zmqrl("profile", run, "--json").stdout)
    assert found["blame"][0]["cause"] == "straggle"
    (row,) = json.loads(ran_zmqrl("profile", run, "--versions", "8", "--json").stdout)["versions"]
    assert (row["version"], row["kth"], row["cause"], row["host"]) == (8, 1, "straggle", HERE)
    assert ran_zmqrl("profile", run, run, "--fail-above", "10%").stderr == ""
    assert json.loads(ran_zmqrl("profile", run, run, "--json").stdout)["above"] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--seconds", "5"), "is not running: remove --seconds"),
        (("--versions", "900"), "the profile has no critical path for these versions"),
        (("--fail-above", "5%"), "--fail-above compares two runs"),
        (("--trace", "/proc/no/t.json"), "cannot"),
        (("--plot", "/proc/no/t.png"), "cannot"),
    ],
)
def test_profile_refuses_bad_usage_in_one_sentence(
    straggling: RunFiles, arguments: tuple[str, ...], sentence: str
) -> None:
    done = ran_zmqrl("profile", straggling.path, *arguments, status=2)
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


def test_an_error_about_a_run_without_a_profile_points_to_its_metrics(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = ran_zmqrl("profile", tmp_path, status=2)
    assert "has no profile" in done.stderr
    assert "The mean time of each span is still in its metrics.jsonl, under split_s" in done.stderr


@pytest.mark.slow
def test_a_live_run_can_be_profiled_for_some_seconds(tmp_path: Path) -> None:
    with training(tmp_path / "run", "--workers", "2", "--shards", "2", "--straggle", "0:0.05") as run:
        run.wait_for(20)
        found = json.loads(ran_zmqrl("profile", run.files.path, "--seconds", "6", "--json").stdout)
        assert found["updates"] * found["update_ms"]["mean"] <= 6_000 + found["update_ms"]["mean"]
        counts = {row["span"]: row["count"] for row in found["spans"] if row["who"] == "worker-0"}
        assert counts["straggle"] >= found["updates"] - 1
        assert found["updates"] > 10
        assert found["blame"][0]["cause"] == "straggle"
        assert found["blame"][0]["rank"] == 0


@pytest.mark.slow
def test_a_profile_takes_less_than_100_bytes_per_version_and_rank(tmp_path: Path) -> None:
    files = trained(tmp_path / "run", "--workers", "2", "--shards", "2", "--updates", "600")
    assert sum(path.stat().st_size for path in (files.path / "profile").iterdir()) < 100 * 600 * 2


@pytest.mark.slow
def test_the_slow_environment_of_one_rank_is_blamed_first(tmp_path: Path) -> None:
    (tmp_path / "slow_games.py").write_text(SLOW_ON_ONE_RANK, encoding="utf-8")
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    options = ("--env", "slow_games:Slow-v0", "--workers", "2", "--shards", "2", "--updates", "48")
    with training(tmp_path / "run", *options, environment=environment) as run:
        run.wait_for(1)
        slow = int((tmp_path / "slow").read_text())
        run.eventually(lambda: slow in run.pids(), "a slow rank")
        rank = next(rank for rank in (0, 1) if run.pid("worker", rank) == slow)
        assert run.wait() == 0, run.said()
    first = profile(run.files)["blame"][0]
    assert (first["cause"], first["rank"], first["host"]) == ("env_step", rank, HERE)


def paused(run: Run, role: str, number: int, seconds: float) -> None:
    pid = run.living_pid(role, number)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def interrupted(files: RunFiles, process: ProcessId, seconds: float) -> set[str]:
    """The causes that match the span in which ``process`` was paused."""
    (each,) = (each for each in read(files.path).processes if each.process == process)
    spans = each.table("spans")
    names = {each.span_names[i] for i in spans["name"][spans["duration_ns"] > 1e9 * seconds]}
    if process.role == "shard":
        return names - {"receive"} or {"gradient_transfer", "accumulate"}
    if "wait" in names:
        return {"weights_transfer", "gradient_transfer"}
    return names or {"other"}


@pytest.mark.slow
@pytest.mark.parametrize(("process", "key"), [(worker_id(1), "rank"), (shard_id(1), "shard")], ids=str)
def test_a_paused_process_is_blamed_first(process: ProcessId, key: str, tmp_path: Path) -> None:
    options = ("--workers", "2", "--shards", "2", "--updates", "160", "--profile", "160")
    with training(tmp_path / "run", *options) as run:
        run.wait_for(32)
        paused(run, process.role, 1, 4.0)
        assert run.wait() == 0, run.said()
    first = profile(run.files)["blame"][0]
    assert (first[key], first["host"]) == (1, HERE)
    assert first["cause"] in interrupted(run.files, process, 3.5)
    assert first["seconds"] > 3.5


@pytest.mark.slow
def test_a_slow_shard_is_blamed_first(tmp_path: Path) -> None:
    with training(tmp_path / "run", "--workers", "2", "--shards", "2", "--updates", "160") as run:
        run.wait_for(16)
        pid = run.living_pid("shard", 1)
        while run.process.poll() is None and is_alive(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.15)
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.05)
        assert run.wait() == 0, run.said()
    found = profile(run.files)
    first = found["blame"][0]
    assert (first["shard"], first["host"]) == (1, HERE)
    assert first["cause"] in ("gradient_transfer", "weights_transfer", "accumulate", "optimize", "commit", "publish")
    rows = found["blame"]
    assert sum(row["seconds"] for row in rows if row["shard"] == 1) > sum(row["seconds"] for row in rows) / 2


COMPETING = 24  # many more programs than a loaded machine has on its other cores


@pytest.fixture
def burning(skip_or_fail: Callable[[str], NoReturn]) -> Iterator[int]:
    """A core on which many programs compete."""
    if len(cores := os.sched_getaffinity(0)) < 2:
        skip_or_fail("on one core, a single worker cannot lose its core")
    core = max(cores)
    command = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]
    with contextlib.ExitStack() as stack:
        for _ in range(COMPETING):
            # Linux can share a core equally between sessions instead of processes.
            stack.enter_context(ending(subprocess.Popen(command, start_new_session=True)))
        yield core


@pytest.mark.slow
def test_a_worker_that_lost_its_core_is_blamed_for_waiting_for_a_core(burning: int, tmp_path: Path) -> None:
    with training(tmp_path / "run", "--workers", "2", "--shards", "2", "--updates", "200") as run:
        run.wait_for(16)
        pid = run.living_pid("worker", 1)
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {burning})
        assert run.wait() == 0, run.said()
    found = profile(run.files)
    assert found["machine"]["worker-1"]["queued_share"] > 2 * found["machine"]["worker-0"]["queued_share"]
    assert any(re.match(r"workers? (0-)?1 on .* of a core", warning) for warning in found["warnings"])
    first = found["blame"][0]
    assert (first["rank"], first["host"]) == (1, HERE)
    assert first["cause"] in WORK


@pytest.mark.slow
def test_a_killed_worker_and_shard_leave_their_profiles(tmp_path: Path) -> None:
    with training(tmp_path / "run", "--workers", "2", "--shards", "2") as run:
        directory = run.files.path / "profile"
        for killed in (("worker", 1), ("shard", 0)):
            name = "-".join(map(str, killed))
            run.eventually(lambda name=name: any(directory.glob(f"{name}*")), f"the first profile of {name}")
            run.kill(*killed)
        seen = run.files.version()
        run.eventually(lambda: run.files.version() > seen + 200, "200 more versions")
        run.signal(signal.SIGINT)
        run.wait()
    tables = read(run.files.path)
    incarnations = [str(each.process) for each in tables.processes]
    assert incarnations.count("worker-1") == incarnations.count("shard-0") == 2
    for path in directory.iterdir():
        assert list(unpack(path.read_bytes()))
    assert profile(run.files)["updates"] > 200
    assert len(list(directory.iterdir())) < 4 * SEGMENTS_KEPT


@pytest.mark.slow
def test_profiles_can_be_turned_off(tmp_path: Path) -> None:
    options = ("--workers", "1", "--shards", "1", "--updates", "8")
    with training(tmp_path / "run", *options, environment={"ZMQRL_PROFILE": "off"}) as run:
        assert run.wait() == 0, run.said()
    assert not (run.files.path / "profile").exists()


@pytest.mark.slow
def test_an_asynchronous_run_shows_spans_inclusion_and_staleness(tmp_path: Path) -> None:
    options = ("--mode", "async", "--workers", "2", "--shards", "2", "--updates", "60", "--straggle", "1:0.05")
    run = trained(tmp_path / "run", *options, "--profile", "20").path
    found = json.loads(ran_zmqrl("profile", run, "--json").stdout)
    assert (found["mode"], found["updates"]) == ("async", 60)
    assert sum(found["inclusion"].values()) == pytest.approx(1.0)
    assert found["inclusion"]["0"] > found["inclusion"]["1"] > 0
    assert found["ranks"]["1"]["staleness"] > found["ranks"]["0"]["staleness"]
    assert (found["blame"], found["what_if"], found["path_ms"]) == ([], [], {})
    assert found["spans"]
    assert found["machine"]
    assert ran_zmqrl("profile", run).stdout.count("there is no critical path") == 1
    assert (tmp_path / "run" / "trace.json").exists()
