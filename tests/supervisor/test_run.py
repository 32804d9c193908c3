"""Complete runs from the command line with real processes: their work, their end and the files that they leave."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.paths import ROOT
from support.run_rig import OUTCOMES, QUICKLY, ROW_KEYS, WITHIN_S, Line, RunFiles, copied, trained, training
from support.terminal import on_a_terminal

from zmqrl.checkpoint import Checkpoint, checkpoints
from zmqrl.commands.inspect.check_history import check
from zmqrl.config import Config

pytestmark = pytest.mark.processes


# many checks of one run


class Finished(RunFiles):
    """A finished run, its output, and the ``cluster.json`` that it had while it was live."""

    def __init__(self, files: RunFiles, said: str, cluster: Line, cluster_mode: int) -> None:
        super().__init__(files.path)
        for name, value in {"said": said, "cluster_was": cluster, "cluster_mode": cluster_mode}.items():
            object.__setattr__(self, name, value)

    said: str
    cluster_was: Line
    cluster_mode: int


UPDATES = 40
CONSISTENT = ("--consistent", "--workers", "2", "--seed", "3", "--updates", str(UPDATES))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("finished") / "run"
    with training(path, *CONSISTENT, "--shards", "2", "--profile", "20") as run:
        run.eventually(lambda: (path / "cluster.json").exists() and run.pid("worker", 1), "cluster.json")
        cluster, mode = run.files.cluster(), (path / "cluster.json").stat().st_mode
        assert run.wait() == 0, run.said()
        run.assert_nothing_left(run_pids(cluster), within_s=0.1)
        return Finished(run.files, run.said(), cluster, stat.S_IMODE(mode))


def run_pids(cluster: Line) -> list[int]:
    return [entry["pid"] for entry in (*cluster["shards"], *cluster["workers"]) if entry["pid"] is not None]


def test_a_limit_of_updates_ends_every_shard_at_exactly_that_version(finished: Finished) -> None:
    finished.assert_history_exact(UPDATES)
    assert finished.newest().version == UPDATES
    assert check(finished.path) == {"shards": 2, "versions": UPDATES, "violations": []}


def test_the_summary_agrees_with_the_last_checkpoint_and_with_itself(finished: Finished) -> None:
    summary = finished.assert_summary_exact("updates")
    assert (summary["workers"], summary["backups"]) == (2, 0)
    # Each worker makes 16 updates (4 epochs x 4 minibatches) from a rollout of 32 steps in 8 games: 40 updates need 3
    # rollouts. A worker that sees the last version before BYE plays once more.
    assert summary["agent_steps"] in range(2 * 3 * 32 * 8, 2 * 4 * 32 * 8 + 1, 32 * 8)
    assert summary["abandoned_steps"] == 0
    assert summary["episodes"] > 0
    assert summary["wall_s"] > 0
    assert summary["agent_steps_per_s"] == pytest.approx(summary["agent_steps"] / summary["wall_s"])


def test_the_metrics_have_their_keys_and_end_with_the_last_version(finished: Finished) -> None:
    rows = finished.metrics()
    for row in rows:
        assert set(row) >= ROW_KEYS
        assert set(row["contributions"]) == OUTCOMES
        assert row["split_s"].keys() >= {"env_step", "act", "gradient", "encode", "push", "wait", "assemble"}
    versions = [row["version"] for row in rows]
    assert versions == sorted(set(versions))
    summary = finished.summary()
    assert rows[-1]["version"] == UPDATES
    for key in ("agent_steps", "contributions", "score_mean_50", "episodes", "wall_s"):
        assert rows[-1][key] == summary[key]


def test_tensorboard_can_read_the_files_of_a_run(finished: Finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    events = EventAccumulator(str(finished.path / "tensorboard"))
    events.Reload()
    scores = events.Scalars("charts/score_mean_50")
    assert scores[-1].step == UPDATES
    assert scores[-1].value == pytest.approx(finished.summary()["score_mean_50"])


def test_every_process_keeps_a_log(finished: Finished) -> None:
    assert {path.name for path in (finished.path / "logs").iterdir()} == {
        f"{name}.log" for name in ("supervisor", "shard-0", "shard-1", "worker-0", "worker-1")
    }
    assert "loaded version 0" in finished.log("shard-0")


def test_the_summary_names_the_number_format_of_the_network(finished: Finished) -> None:
    assert finished.summary()["compute"] == ["float32"]


def test_the_settings_of_a_run_can_be_read_back(finished: Finished) -> None:
    config = Config.read(finished.path / "config.json")
    assert (config.recipe, config.updates, config.consistent, config.profile) == ("cartpole", UPDATES, True, 20)


def test_the_cluster_file_is_private_and_has_everything_a_worker_needs(finished: Finished) -> None:
    cluster = finished.cluster_was
    assert finished.cluster_mode == 0o600
    assert set(cluster) >= {"protocol", "run", "shards", "workers", "open_ranks", "codec", "layout", "keys"}
    for entry in cluster["shards"]:
        assert set(entry) == {"shard", "host", "pid", "grad", "weights", "control"}
    assert [entry["shard"] for entry in cluster["shards"]] == [0, 1]
    assert [entry["rank"] for entry in cluster["workers"]] == [0, 1]
    assert cluster["layout"]["hash"] == finished.newest().layout.hash
    assert cluster["open_ranks"] == []


def test_files_that_only_a_live_run_needs_are_removed_when_the_run_ends(finished: Finished) -> None:
    left = {path.name for path in finished.path.iterdir()}
    assert not left & {"cluster.json", "left.json", "sockets", "state"}
    assert [path for path in finished.path.rglob("*") if path.is_dir() and not any(path.iterdir())] == []


def test_a_run_without_a_terminal_prints_plain_lines(finished: Finished) -> None:
    assert "\x1b" not in finished.said
    lines = finished.said.splitlines()
    assert lines[:2] == ["checking the game CartPole-v1", "drawing the initial parameters"]
    assert lines[2].startswith("run directory")
    assert "CartPole-v1" in lines[2]
    assert lines[3:5] == ["starting 2 shards", "waiting for 2 workers"]
    assert any(re.search(rf"updates {UPDATES}\b.*score", line) for line in lines)
    # Another line of figures may follow: the console prints one only every ten seconds.
    assert any(line.startswith(f"ended (updates) at version {UPDATES}") for line in lines[-2:])


def named(event: Line) -> bool:
    return bool(event["ph"] == "M" and event["name"] == "process_name")


def test_a_profile_is_a_chrome_trace_with_the_spans_of_workers_and_shards(finished: Finished) -> None:
    trace = json.loads((finished.path / "trace.json").read_text(encoding="utf-8"))
    events = trace["traceEvents"]
    names = {event["pid"]: event["args"]["name"].partition(" on ")[0] for event in events if named(event)}
    assert set(names.values()) == {"shard 0", "shard 1", "worker 0", "worker 1"}
    spans: dict[str, set[str]] = {name: set() for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            spans[names[event["pid"]]].add(event["name"])
    for worker in ("worker 0", "worker 1"):
        assert spans[worker] >= {"env_step", "act", "gradient", "encode", "push", "wait", "assemble"}
    for shard in ("shard 0", "shard 1"):
        assert spans[shard] >= {"receive", "accumulate", "optimize", "commit", "publish"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--shards", "1", "--straggle", "0:0.01"), ("--shards", "3")])
def test_consistent_runs_are_bit_identical_for_any_number_of_shards(
    finished: Finished, tmp_path: Path, options: tuple[str, ...]
) -> None:
    again = trained(tmp_path / "run", *CONSISTENT, *options)
    assert again.summary()["params_sha256"] == finished.summary()["params_sha256"]


# resuming a run


@pytest.mark.slow
def test_resuming_keeps_weights_optimizer_state_and_counters_unchanged(finished: Finished, tmp_path: Path) -> None:
    path = copied(finished, tmp_path / "run")
    before, summary = finished.newest(), finished.summary()
    # Workers that sleep for a minute contribute nothing, so the shards return exactly the state that they got.
    with training(path, "--resume", "--updates", "60", "--straggle", "0:60", "--straggle", "1:60") as run:
        run.wait_to_say("settings changed from here on: updates 40 -> 60, straggle [] -> ['0:60', '1:60']")
        run.eventually(lambda: run.files.log("shard-0").count("is present") == 4, "the workers")
        run.signal(signal.SIGINT)
        run.eventually(lambda: run.files.newest().generation > before.generation, "the last checkpoint")
        run.interrupt()
        after = run.files.newest()
        assert after.version == UPDATES
        assert after.states == before.states
        for key in ("updates", "contributions", "params_sha256"):
            assert run.files.summary()[key] == summary[key]
        for key in ("agent_steps", "episodes", "wall_s"):
            assert run.files.summary()[key] >= summary[key]
        run.files.assert_history_exact(UPDATES)


def test_a_schedule_that_a_resume_begins_ends_with_its_session(finished: Finished, tmp_path: Path) -> None:
    path, trained_s = copied(finished, tmp_path / "run"), finished.summary()["wall_s"]
    falling = ("--optimizer.final-learning-rate", "1e-5", "--minutes", "5")
    trained(path, "--resume", "--updates", "42", "--no-consistent", *falling)
    schedule = json.loads((path / "config.json").read_text())["schedule"]
    assert (schedule["minutes"], schedule["updates"]) == (pytest.approx(5 + trained_s / 60), 42)


def test_a_resumed_run_continues_where_it_ended(finished: Finished, tmp_path: Path) -> None:
    path = copied(finished, tmp_path / "run")
    before = finished.summary()
    resumed = trained(path, "--resume", "--updates", "60", "--no-consistent")
    resumed.assert_history_exact(60)
    assert resumed.history(0)[:UPDATES] == finished.history(0)
    assert len({line["generation"] for line in resumed.history(0)}) == 2
    summary = resumed.assert_summary_exact("updates")
    for key in ("agent_steps", "episodes", "wall_s"):
        assert summary[key] > before[key]
    assert summary["params_sha256"] != before["params_sha256"]
    versions = [row["version"] for row in resumed.metrics()]
    assert versions == sorted(set(versions))
    assert versions[-1] == 60
    assert not list((path / "history").glob("*before*"))


# how a run ends


@pytest.mark.slow
def test_the_script_for_this_machine_trains_and_takes_options(tmp_path: Path) -> None:
    script = ROOT / "launch" / "local.sh"
    program = {"ZMQRL": str(Path(sys.executable).with_name("zmqrl"))}
    command = [
        str(script),
        "cartpole",
        "--workers",
        "2",
        "--updates",
        "3",
        "--run-dir",
        str(tmp_path / "run"),
        *QUICKLY,
    ]
    subprocess.run(command, check=True, timeout=WITHIN_S, stdout=subprocess.DEVNULL, env=os.environ | program)
    RunFiles(tmp_path / "run").assert_summary_exact("updates")


@pytest.mark.slow
def test_a_run_with_periodic_checkpoints_ends_at_its_limit_of_minutes(tmp_path: Path) -> None:
    options = ("--workers", "1", "--minutes", "0.06", "--checkpoint.every-minutes", "0.005", "--checkpoint.keep", "2")
    files = trained(tmp_path / "run", *options)
    summary = files.assert_summary_exact("minutes", quorum=1)
    assert summary["wall_s"] >= 3.6
    files.assert_history_exact(summary["updates"], quorum=1)
    kept = checkpoints(files.path / "checkpoints")
    assert len(kept) == 2
    assert Checkpoint.read(kept[0]).version > 0


@pytest.mark.slow
def test_a_limit_of_agent_steps_ends_a_run_and_a_straggler_delays_a_run_without_backups(tmp_path: Path) -> None:
    files = trained(tmp_path / "run", "--agent-steps", "1000", "--straggle", "1:0.1", "--wire.transport", "tcp")
    summary = files.assert_summary_exact("agent_steps")
    assert summary["agent_steps"] >= 1000
    assert summary["wall_s"] >= 0.1 * (summary["updates"] - 1)
    files.assert_history_exact(summary["updates"])


@pytest.mark.slow
def test_a_score_ends_a_run_and_a_run_with_a_backup_does_not_wait_for_a_straggler(tmp_path: Path) -> None:
    files = trained(tmp_path / "run", "--stop-score", "10", "--workers", "1", "--backups", "1", "--straggle", "1:60")
    summary = files.assert_summary_exact("stop_score", quorum=1)
    assert (summary["workers"], summary["backups"]) == (1, 1)
    assert summary["score_mean_50"] >= 10
    assert summary["episodes"] >= 50
    files.assert_history_exact(summary["updates"], quorum=1)
    assert all(line["ranks"] == [0] for line in files.history(0))


def test_a_second_interrupt_ends_everything_at_once_and_a_third_changes_nothing(tmp_path: Path) -> None:
    # Workers that sleep for a minute delay the end of the run.
    with training(tmp_path / "run", "--straggle", "0:60", "--straggle", "1:60") as run:
        run.eventually(lambda: run.files.log("shard-0").count("is present") == 2, "the workers")
        pids = run.pids()
        run.signal(signal.SIGINT)
        run.eventually(run.files.has_last_checkpoint, "the last checkpoint")
        assert run.process.poll() is None
        run.signal(signal.SIGINT)
        time.sleep(0.1)
        run.interrupt(within_s=45)
        run.assert_nothing_left(pids, within_s=0.1)
        assert run.files.summary()["exit_reason"] == "interrupted"
        assert run.complaint() == ""


@pytest.mark.slow
def test_on_a_terminal_a_run_shows_a_live_view_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with on_a_terminal("train", "cartpole", "--run-dir", str(path), *QUICKLY) as terminal:
        terminal.has_said("agent steps/s")
        assert "\x1b[" in terminal.said
        assert "╭" in terminal.said
        terminal.type("\x03")
        terminal.has_said("ended (interrupted)")
        assert terminal.wait() == 130
    shown = terminal.said
    assert "\x1b[?25h" in shown[shown.rindex("\x1b[?25l") :], "the cursor stays hidden"
    RunFiles(path).assert_summary_exact("interrupted")
