"""Processes of a run are killed. The run goes on with an exact history, or ends with the reason. No process is left."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.rig import Gradient, Worker
from support.run_rig import WITHIN_S, Run, outside_worker, trained, training

import zmqrl
from zmqrl.checkpoint import checkpoints
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.wire.codec import FloatVector
from zmqrl.ps.worker.connection import PulledWeights

pytestmark = pytest.mark.processes
LONG = (pytest.mark.slow, pytest.mark.timeout(900))

# Shrink sooner than after ten seconds, and give up sooner than after four deaths.
IMPATIENT = """
from zmqrl import cli
from zmqrl.supervisor import membership, processes
membership.SHRINK_AFTER_S = 1.0
processes.FAILURES_IN_A_ROW = 2
processes.SILENCE_S = 2.0
processes.HUNG_S = 4.0
cli.main()
"""
# On a busy machine, simultaneous deaths may be reported seconds apart.
FOLDING = "from zmqrl import cli\nfrom zmqrl.observe import folding\nfolding.WINDOW_S = 8.0\ncli.main()"

# A run that waits for its shards to stop would exceed the time limit of the test.
PATIENT = """
from zmqrl import cli
from zmqrl.supervisor import machine, supervisor
machine.STOP_WITHIN_S = supervisor.STOP_WITHIN_S = 600.0
cli.main()
"""
# The first STOP to shard 1 is lost.
FORGETFUL = """
from zmqrl import cli
from zmqrl.ps import control
from zmqrl.ps.wire import messages
send, lost = control.ShardControl.send, []

def forget(self, shard, message, payload=None):
    if isinstance(message, messages.Stop) and shard == 1 and not lost:
        lost.append(message)
        return True
    return send(self, shard, message, payload)

control.ShardControl.send = forget
cli.main()
"""

SLOWLY = ("--straggle", "0:0.02", "--straggle", "1:0.02")


def killed(said: str) -> int:
    """The number of deaths by SIGKILL that a run has reported. One line can report several."""
    words = r"died \(killed by SIGKILL\) and is being restarted(?:; its log ends:)?(?: \((\d+)x\))?$"
    return sum(int(times or 1) for times in re.findall(words, said, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("turns", [3, pytest.param(25, marks=LONG)])
def test_a_run_stays_exact_when_its_shards_and_workers_are_killed_in_turn(tmp_path: Path, turns: int) -> None:
    with training(tmp_path / "run", *SLOWLY) as run:
        for turn in range(turns):
            for role, number in (("shard", turn % 2), ("worker", (turn + 1) % 2)):
                run.wait_for(run.files.version() + 5)
                run.kill(role, number)
        run.wait_for(run.files.version() + 5)
        run.interrupt()
        summary = run.files.assert_summary_exact("interrupted")
        run.files.assert_history_exact(summary["updates"])
        run.files.assert_contributions_exact()
        said = run.said()
        assert killed(said) == 2 * turns
        assert "go back" not in said


@pytest.mark.slow
def test_a_shard_that_lost_its_state_rolls_all_shards_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with training(path, *SLOWLY, "--checkpoint.every-minutes", "0.01") as run:
        run.wait_to_say("checkpoint of version")
        run.wait_for(run.files.version() + 20)
        (path / "state" / "shard-1.slots").unlink()
        run.kill("shard", 1)
        run.wait_to_say("all shards go back to the checkpoint of version")
        run.eventually(
            lambda: run.files.history(1) and run.files.history(1)[-1]["generation"] > 1, "a version of generation 2"
        )
        run.wait_for(run.files.version() + 5)
        run.interrupt()
    updates = run.files.summary()["updates"]
    run.files.assert_history_exact(updates)
    assert run.files.newest().version == updates
    assert run.files.summary()["params_sha256"] == run.files.newest().params_sha256()
    for shard in range(2):
        generations = [line["generation"] for line in run.files.history(shard)]
        assert generations == sorted(generations)
    undone = list((path / "history").glob("shard-*.before-generation-2.jsonl"))
    assert undone, "undone versions must be kept"
    run.files.assert_contributions_exact()


@pytest.mark.slow
@pytest.mark.parametrize("turns", [3, pytest.param(15, marks=LONG)])
def test_every_figure_matches_the_histories_after_rollbacks(tmp_path: Path, turns: int) -> None:
    path = tmp_path / "run"
    options = ("--workers", "1", "--backups", "1", "--checkpoint.every-minutes", "0.01")
    with training(path, *SLOWLY, *options) as run:
        for turn in range(turns):
            run.wait_to_say("checkpoint of version")
            run.wait_for(run.files.version() + 20)
            (path / "state" / f"shard-{turn % 2}.slots").unlink()
            run.kill("shard", turn % 2)
            run.eventually(lambda turn=turn: run.said().count("all shards go back") > turn, "a rollback")
            run.eventually(
                lambda turn=turn: all(run.files.generation(shard) == turn + 2 for shard in range(2)),
                "versions after the rollback",
            )
        run.interrupt()
    summary = run.files.assert_summary_exact("interrupted", quorum=1)
    run.files.assert_history_exact(summary["updates"], quorum=1)
    run.files.assert_contributions_exact()
    assert summary["contributions"]["late"] + summary["contributions"]["skipped"] > 0


@pytest.mark.slow
def test_a_lost_stop_is_sent_again(tmp_path: Path) -> None:
    with training(tmp_path / "run", *SLOWLY, "--updates", "20", program=("-c", FORGETFUL)) as run:
        assert run.wait() == 0, run.said()
    run.files.assert_summary_exact("updates")
    run.files.assert_history_exact(20)


@contextlib.contextmanager
def pushing(run: Run, gradient: Gradient) -> Iterator[None]:
    """Run both ranks of ``run`` as external workers in threads. The test does not wait for the threads."""
    run.wait_to_say("rank 1 is open")
    workers = [Worker(Cluster.read(run.files.path / "cluster.json"), rank, gradient=gradient) for rank in range(2)]
    try:
        for worker in workers:
            worker.thread.start()
        yield
    finally:
        for worker in workers:
            worker.leaving.set()
            worker.connection.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "everywhere"),
    [
        pytest.param(3e38, True, id="the sum of two is too large"),
        pytest.param(1e25, True, id="a square is too large"),
        pytest.param(3e38, False, id="the sum is too large on one shard only"),
    ],
)
def test_contributions_that_make_a_non_finite_version_end_the_run_at_the_previous_version(
    tmp_path: Path, number: float, everywhere: bool
) -> None:
    def gradient(rank: int, weights: PulledWeights) -> FloatVector:
        vector = np.full(weights.vector.size, 1e-3, np.float32)
        if weights.version == 5:
            vector[0 if everywhere else -100 :] = number
            if not everywhere:  # shard 0 is to make its version first
                signal_shard_1(signal.SIGSTOP)
        return vector

    def signal_shard_1(number: signal.Signals) -> None:
        pid = run.living_pid("shard", 1)
        os.kill(pid, number)

    path, options = tmp_path / "run", ("--workers", "2", "--external-workers", "2")
    with training(path, *options, program=("-c", PATIENT)) as run, pushing(run, gradient):
        if not everywhere:
            run.eventually(lambda: len(run.files.history(0)) == 6, "version 6 of shard 0")
            signal_shard_1(signal.SIGCONT)
        assert run.wait() == 3
    (complaint,) = run.complaint().splitlines()
    assert re.match(
        rf"zmqrl: shard [{'01' if everywhere else '1'}] stays at version 5: version 6 has numbers that are not finite, "
        r"from contributions of ranks 0, 1; lower the learning rate",
        complaint,
    )
    assert run.files.assert_summary_exact("failed")["updates"] == 5
    run.files.assert_history_exact(5)
    if everywhere:
        run.files.assert_contributions_exact()
    else:  # shard 0 had made one more version, which a row may have counted
        (undone,) = (path / "history").glob("shard-0.before-generation-2.jsonl")
        assert undone.read_text(encoding="utf-8").startswith('{"version": 6, ')
        trained(path, "--resume", "--updates", "10", "--external-workers", "0").assert_history_exact(10)


@pytest.mark.slow
def test_a_termination_signal_ends_a_run_with_a_checkpoint_even_just_after_a_shard_was_killed(
    tmp_path: Path,
) -> None:
    with training(tmp_path / "run") as run:
        run.wait_for(5)
        run.kill("shard", 0)
        run.interrupt(signal.SIGTERM)
        summary = run.files.assert_summary_exact("interrupted")
        assert summary["updates"] >= 5
        run.files.assert_history_exact(summary["updates"])


@pytest.mark.slow
def test_a_shard_killed_while_the_run_starts_or_ends_comes_back_and_the_run_ends_normally(tmp_path: Path) -> None:
    with training(tmp_path / "run", *SLOWLY) as run:
        run.eventually(lambda: (run.files.path / "cluster.json").exists() and run.pid("shard", 1), "the start")
        run.kill("shard", 1)
        run.wait_for(5)
        run.signal(signal.SIGINT)
        run.wait_to_say("stopping (interrupted)")
        run.kill("shard", 0)
        assert run.wait() == 130, run.said()
        summary = run.files.assert_summary_exact("interrupted")
        assert summary["updates"] >= 5
        run.files.assert_history_exact(summary["updates"])


@pytest.mark.slow
def test_a_stopped_worker_is_named_and_restarted(tmp_path: Path) -> None:
    with training(tmp_path / "run", program=("-c", IMPATIENT)) as run:
        run.wait_for(5)
        pid = run.living_pid("worker", 1)
        os.kill(pid, signal.SIGSTOP)
        run.wait_to_say(f"worker-1 (process {pid}) has not answered for")
        run.wait_to_say("worker-1 has not answered for 4 s and is being restarted")
        run.wait_for(run.files.version() + 20)
        run.interrupt()
        run.files.assert_history_exact(run.files.assert_summary_exact("interrupted")["updates"])


@pytest.mark.parametrize("lost", [False, pytest.param(True, marks=LONG[0])])
def test_no_process_outlives_a_killed_supervisor_and_the_run_resumes_from_its_shards(
    tmp_path: Path, lost: bool
) -> None:
    path = tmp_path / "run"
    with training(path, *SLOWLY, "--checkpoint.every-minutes", "0.03") as run:
        run.wait_to_say("checkpoint of version")
        run.wait_for(run.files.version() + 10)
        pids = run.pids()
        assert len(pids) == 4
        run.process.kill()
        run.wait()
        run.assert_nothing_left(pids, within_s=5)
    last = checkpoints(path / "checkpoints")[-1]
    checkpointed_at, killed_at = run.files.newest().version, run.files.version()
    assert killed_at > checkpointed_at
    kept = checkpointed_at if lost else killed_at
    history = [run.files.history(shard)[:kept] for shard in range(2)]
    if lost:
        (path / "state" / "shard-1.slots").unlink()

    files = trained(path, "--resume", "--updates", str(killed_at + 10))
    said = (tmp_path / "run.stdout").read_text(encoding="utf-8")
    resumed_at = said.partition("resuming from version ")[2].split()[0]
    if lost:
        gone = f"there is no state in {path}/state/shard-1.slots on localhost."
        assert f"everything after version {kept} is lost: {gone}" in said
        assert int(resumed_at) == checkpointed_at
        assert list((path / "history").glob("shard-0.before-generation-*.jsonl"))
    else:  # the kill may have come after a shard made the last version and before it wrote the line
        assert int(resumed_at) in (killed_at, killed_at + 1)
    files.assert_summary_exact("updates")
    files.assert_history_exact(killed_at + 10)
    files.assert_contributions_exact()
    assert [files.history(shard)[:kept] for shard in range(2)] == history
    assert not (path / "left.json").exists()
    assert last.exists()


def make_rows_long(metrics: Path) -> None:
    """Add so many rows that a worker can find a restarted shard while a resume still reads the rows."""
    rows = metrics.read_bytes() if metrics.exists() else b""
    earlier = [{"version": 0, "wall_s": second - 1e6, "agent_steps": 0} for second in range(200_000)]
    metrics.write_bytes("".join(f"{json.dumps(row)}\n" for row in earlier).encode() + rows)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_run_resumes_from_its_shards_even_if_an_external_worker_is_still_running(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "run"
    survivor: Worker | None = None
    try:
        with training(path, "--mode", mode, "--workers", "1", "--external-workers", "1") as run:
            run.wait_to_say("rank 0 is open: zmqrl worker")
            survivor = Worker(Cluster.read(path / "cluster.json"), 0)
            survivor.thread.start()
            run.wait_for(100)
            pids = [entry["pid"] for entry in run.files.cluster()["shards"]]
            run.process.kill()
            run.process.wait()
            run.assert_nothing_left(pids, within_s=15)
        assert survivor.thread.is_alive()
        make_rows_long(path / "metrics.jsonl")
        history = [run.files.history(shard) for shard in range(2)]
        stood = [len(lines) for lines in history]
        end = max(stood) + 20
        with training(path, "--resume", "--updates", str(end)) as run:
            run.wait_to_say("rank 0 is open: zmqrl worker")
            run.eventually(lambda: survivor.error is not None, "the end of the old worker")
            with Worker(Cluster.read(path / "cluster.json"), 0):
                assert run.wait() == 0, run.said()
    finally:
        if survivor is not None:
            survivor.connection.close()
    resumed_at = int(run.said().partition("resuming from version ")[2].split()[0])
    assert resumed_at in (min(stood), min(stood) + 1), "the last version may lack its line"
    assert "is lost" not in run.said()
    for shard in range(2):
        kept = stood[shard] if mode == "async" else min(stood)
        assert run.files.history(shard)[:kept] == history[shard][:kept]
        assert [line["version"] for line in run.files.history(shard)] == list(range(1, end + 1))


@pytest.mark.slow
def test_no_process_outlives_a_supervisor_killed_while_its_workers_start(tmp_path: Path) -> None:
    with training(tmp_path / "run") as run:
        run.eventually(
            lambda: (run.files.path / "cluster.json").exists() and run.pid("worker", 1), "the start of worker 1"
        )
        pids = run.pids()
        run.process.kill()
        run.wait()
        run.assert_nothing_left(pids, within_s=8)  # the workers import for seconds before they check their parent


BROKEN_GAME = """
import os
import pathlib
import sys
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

BREAKS_FOR, AFTER_STEPS = map(int, os.environ["BREAKS"].split(":"))
BROKEN = pathlib.Path(__file__).with_name("broken")

def rank():
    frame = sys._getframe()
    while frame.f_code.co_name != "join":
        frame = frame.f_back
        if frame is None:
            return None  # not in a worker
    return frame.f_locals["rank"]

def concerned():
    return rank() is not None and BREAKS_FOR in (-1, rank())

class BrokenGame(CartPoleEnv):
    '''Breaks after AFTER_STEPS steps and then always at once. BREAKS_FOR is a rank, or -1 for all.'''

    def __init__(self, **options):
        super().__init__(**options)
        self.played = 0
        if concerned() and (AFTER_STEPS == 0 or BROKEN.exists()):
            print("looking for a joystick")
            raise RuntimeError("the joystick is not plugged in")

    def step(self, action):
        self.played += 1
        if concerned() and self.played > AFTER_STEPS:
            BROKEN.touch()
            raise RuntimeError("the joystick broke")
        return super().step(action)

class WrongGame(BrokenGame):
    '''Pays no number after AFTER_STEPS steps.'''

    def __init__(self, **options):
        super(BrokenGame, self).__init__(**options)
        self.played = 0

    def step(self, action):
        self.played += 1
        observation, reward, *over = super(BrokenGame, self).step(action)
        return observation, float("nan") if concerned() and self.played > AFTER_STEPS else reward, *over

gymnasium.register("Broken-v0", entry_point=BrokenGame)
gymnasium.register("Wrong-v0", entry_point=WrongGame)
"""
CODE_FAILED = "(user code raised an exception)"
LINE = BROKEN_GAME.splitlines().index('            raise RuntimeError("the joystick broke")') + 1
BROKE = f"broken_game:Broken-v0 fails: RuntimeError: the joystick broke (broken_game.py, line {LINE})."


def broken(
    tmp_path: Path, breaks: str, *options: str, program: str = IMPATIENT, game: str = "Broken-v0"
) -> contextlib.AbstractContextManager[Run]:
    (tmp_path / "broken_game.py").write_text(BROKEN_GAME, encoding="utf-8")
    return training(
        tmp_path / "run",
        *("--env", f"broken_game:{game}", "--shards", "1", *options),
        program=("-c", program),
        environment={"PYTHONPATH": str(tmp_path), "BREAKS": breaks},
    )


@pytest.mark.slow
def test_a_worker_that_cannot_start_ends_the_run_with_its_last_log_lines_and_exit_status(tmp_path: Path) -> None:
    with broken(tmp_path, "0:0", "--workers", "1") as run:
        assert run.wait() == 2
        assert run.complaint().startswith(f"zmqrl: worker-0 died 2 times in a row {CODE_FAILED}")
        log = run.files.path / "logs" / "worker-0.log"
        _, ending = run.complaint().split("\nThe first to fail was worker-0 on ")
        assert f" {CODE_FAILED}; its log {log} ended with\n  | " in ending
        assert "the joystick is not plugged in" in ending.splitlines()[-1]
        assert run.files.log("worker-0").count("looking for a joystick\n") == 2
        assert "Traceback (most recent call last)" not in run.said()
        summary = run.files.summary()
        assert (summary["exit_reason"], summary["updates"]) == ("failed", 0)
        assert not (run.files.path / "cluster.json").exists()


@pytest.mark.slow
def test_a_run_that_fails_later_leaves_a_checkpoint_of_its_last_version(tmp_path: Path) -> None:
    with broken(tmp_path, "0:200", "--workers", "1") as run:
        assert run.wait() == 2
        assert run.complaint().startswith(f"zmqrl: worker-0 died 2 times in a row {CODE_FAILED}")
        assert run.complaint().endswith(f" ERROR {BROKE}\n"), "the first failure comes last"
        assert run.complaint().splitlines()[-1] in run.files.log("supervisor")
        summary = run.files.assert_summary_exact("failed", quorum=1, shards=1, failed=2)
        assert summary["updates"] == run.files.version(shards=1) >= 3 * 16
        run.files.assert_history_exact(summary["updates"], shards=1, quorum=1)


def test_a_wrong_result_of_an_environment_ends_the_run_at_once_with_a_checkpoint(tmp_path: Path) -> None:
    with broken(tmp_path, "0:200", "--workers", "2", game="Wrong-v0") as run:
        assert run.wait() == 2, run.said()
        why = "broken_game:Wrong-v0 returned a reward of nan from step "
        first, second = run.complaint().splitlines()
        assert first.startswith(f"zmqrl: {why}")
        assert first.endswith(": it must be one finite number.")
        assert re.fullmatch(rf"This ended worker-0 on \S+: see {run.files.path}/logs/worker-0\.log\.", second)
        assert run.files.log("worker-0").count(why) == 1, "the worker was restarted"
        assert " died (" not in run.said()
        summary = run.files.assert_summary_exact("failed", shards=1, failed=2)
        assert summary["updates"] == run.files.version(shards=1) > 0
        run.files.assert_history_exact(summary["updates"], shards=1)


@pytest.mark.slow
@pytest.mark.parametrize(("game", "how"), [("Broken-v0", CODE_FAILED), ("Wrong-v0", "(exit status 2)")])
def test_a_run_continues_without_a_worker_that_cannot_work_if_the_others_form_a_quorum(
    tmp_path: Path, game: str, how: str
) -> None:
    with broken(tmp_path, "1:0", "--workers", "1", "--backups", "1", game=game) as run:
        run.eventually(lambda: run.said().count(f"worker-1] died {how}") >= 3, "three deaths")
        version = run.files.version(shards=1)
        run.eventually(lambda: run.files.version(shards=1) > version + 5, "more versions")
        run.interrupt()
        run.files.assert_history_exact(run.files.summary()["updates"], shards=1, quorum=1)


@pytest.mark.slow
def test_a_shard_that_cannot_write_its_history_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with training(path, *SLOWLY, program=("-c", IMPATIENT)) as run:
        run.wait_for(3)
        (path / "history" / "shard-1.jsonl").unlink()
        (path / "history" / "shard-1.jsonl").mkdir()
        run.kill("shard", 1)
        assert run.wait() == 3
        assert run.complaint().startswith("zmqrl: shard-1 died 3 times in a row (exit status 3)\n  | ")
        assert " (exit status 3); its log " in run.complaint().split("\nThe first to fail was shard-1 on ")[1]
        assert f"cannot write {path}/history/shard-1.jsonl: Is a directory." in run.complaint()
        assert run.files.summary()["exit_reason"] == "failed"
        assert (path / "left.json").exists(), "the state of the shards cannot be found"


@pytest.mark.slow
def test_the_first_failure_of_a_cascade_is_reported_last_and_decides_the_exit_status(tmp_path: Path) -> None:
    with broken(tmp_path, "0:200", "--workers", "2") as run:
        run.wait_to_say(f"worker-0] died {CODE_FAILED}")
        (run.files.path / "history" / "shard-0.jsonl").rename(tmp_path / "history")
        (run.files.path / "history" / "shard-0.jsonl").mkdir()
        run.kill("shard", 0)
        assert run.wait() == 2
        assert run.complaint().startswith("zmqrl: ")
        assert "\nThe first to fail was worker-0 on " in run.complaint()
        assert run.complaint().endswith(f" ERROR {BROKE}\n")


@pytest.mark.slow
def test_a_common_cause_of_death_is_reported_once(tmp_path: Path) -> None:
    with broken(tmp_path, "-1:200", "--workers", "3", program=FOLDING) as run:
        run.wait_to_say(" worker-0..2]   | RuntimeError: the joystick broke (3x)")
        assert f" worker-0..2] died {CODE_FAILED} and is being restarted; its log ends: (3x)" in run.said()


@pytest.mark.slow
def test_a_run_waits_for_an_external_worker_then_continues_without_it_and_later_uses_it_again(tmp_path: Path) -> None:
    options = ("--external-workers", "1", "--on-loss", "shrink")
    with training(tmp_path / "run", *options, program=("-c", IMPATIENT)) as run:
        run.wait_to_say("rank 1 is open: zmqrl worker")
        assert run.files.cluster()["open_ranks"] == [1]
        with outside_worker(run, "--rank", "0") as intruder:
            assert intruder.wait(WITHIN_S) == 2
        run.wait_to_say("waiting for worker 1: 1 of 2 required workers are present")
        assert run.files.version() == 0
        with outside_worker(run) as worker:
            run.wait_for(3)
            worker.kill()
        run.wait_to_say("continuing with 1 of 2 workers")
        run.wait_for(run.files.version() + 20)
        with outside_worker(run) as worker:
            run.wait_to_say("workers present again: 2")
            run.eventually(lambda: all(run.files.history(shard)[-1]["quorum"] == 2 for shard in range(2)), "both")
            run.interrupt()
            assert worker.wait(WITHIN_S) == 0
        for shard in range(2):
            history = run.files.history(shard)
            assert [line["version"] for line in history] == list(range(1, run.files.summary()["updates"] + 1))
            assert all(len(set(line["ranks"])) == len(line["ranks"]) == line["quorum"] for line in history)
            assert [quorum for quorum, _ in itertools.groupby(line["quorum"] for line in history)] == [2, 1, 2]


@pytest.mark.slow
def test_an_external_worker_with_different_code_is_refused_unless_it_asks_to_join_anyway(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(Path(zmqrl.__file__).parent, other / "zmqrl", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "zmqrl" / "errors.py").open("a") as file:
        file.write("# another version\n")
    with training(tmp_path / "run", "--external-workers", "1", "--updates", "20") as run:
        run.wait_to_say("rank 1 is open: zmqrl worker")
        with outside_worker(run, code=other) as stranger:
            assert stranger.wait(WITHIN_S) == 3
        run.wait_to_say("refused: worker 1 on")
        with outside_worker(run, "--any-code", code=other):
            assert run.wait() == 0, run.said()
        run.files.assert_history_exact(20)


@pytest.mark.slow
def test_an_external_worker_that_takes_the_rank_of_a_live_one_replaces_it(tmp_path: Path) -> None:
    with training(tmp_path / "run", "--external-workers", "1") as run:
        run.wait_to_say("rank 1 is open: zmqrl worker")
        with outside_worker(run) as first:
            run.wait_for(3)
            with outside_worker(run) as second:
                assert first.wait(WITHIN_S) == 3
                run.wait_to_say("another worker has taken over rank 1")
                run.wait_for(run.files.version() + 5)
                run.interrupt()
                assert second.wait(WITHIN_S) == 0
        run.files.assert_history_exact(run.files.summary()["updates"])
