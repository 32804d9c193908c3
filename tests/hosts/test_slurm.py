"""Runs on the nodes of a Slurm job: what Slurm says about the job, the time limit, and what remains after the job."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.rig import ending, eventually
from support.run_rig import QUICKLY, RunFiles
from support.slurm import NODES, Slurm

from zmqrl.checkpoint import Checkpoint
from zmqrl.commands.run.launch import Options, directory_name, run
from zmqrl.config import Config
from zmqrl.errors import TIME_IS_UP, ClusterError, UsageError
from zmqrl.hosts.deployment import on_this_machine
from zmqrl.hosts.reach import over_tcp
from zmqrl.hosts.ways import slurm as slurm_jobs
from zmqrl.hosts.ways.slurm import allocation, cores_of, is_over, resolve, srun_command
from zmqrl.learner.envs import describe_env
from zmqrl.observe.metrics import Counters
from zmqrl.recipes import cartpole
from zmqrl.rundir import RunDirectory, write_json
from zmqrl.start.initial import initial_checkpoint
from zmqrl.supervisor import requeue
from zmqrl.supervisor import run as run_of_training
from zmqrl.supervisor.run import _interrupts as interrupts_of
from zmqrl.supervisor.run import train_on

pytestmark = pytest.mark.processes

SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
WITHIN_S = 120.0


# what Slurm says


@pytest.mark.parametrize(("text", "cores"), [("8", [8]), ("8(x2),16", [8, 8, 16]), ("2,4(x1),2(x3)", [2, 4, 2, 2, 2])])
def test_the_cores_of_each_node_are_read(text: str, cores: list[int]) -> None:
    assert cores_of(text) == cores


JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_CPUS_PER_NODE": "8(x3)"}


@pytest.mark.parametrize(
    ("variable", "text", "complaint"),
    [
        ("SLURM_STEP_NUM_TASKS", "x", "is 'x', but must be a number."),
        ("SLURM_STEP_NUM_TASKS", "", "is '', but must be a number."),
        ("SLURM_HET_SIZE", "-1", "is '-1', but must be a number."),
        ("SLURM_JOB_NODELIST", " ", "is empty, but must list the nodes of the job."),
        ("SLURM_JOB_NODELIST", "n[1-", "is 'n[1-': scontrol show hostnames: Invalid hostlist."),
        ("SLURM_JOB_NODELIST", "--help", ": '--help' is not a host name:"),
        ("SLURM_JOB_CPUS_PER_NODE", "", "is '', but must list cores, such as '8(x2),16'."),
        ("SLURM_JOB_CPUS_PER_NODE", "8(x3", "is '8(x3', but must list cores, such as '8(x2),16'."),
        ("SLURM_JOB_CPUS_PER_NODE", "8(x2),,8", "is '8(x2),,8', but must list cores"),
        ("SLURM_JOB_CPUS_PER_NODE", "8(x999999999)", "is '8(x999999999)', but must list cores"),
        ("SLURM_JOB_CPUS_PER_NODE", "8(x2)", "lists 2 nodes, but the job has 3."),
    ],
)
def test_an_odd_variable_of_a_job_is_refused_in_a_sentence_with_its_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, complaint: str
) -> None:
    def scontrol(*arguments: str) -> str:
        if arguments[-1] == "n[1-":
            raise ClusterError("scontrol show hostnames: Invalid hostlist.")
        return "n1\nn2\nn3\n" if arguments[-1] == "n[1-3]" else f"{arguments[-1]}\n"

    monkeypatch.setattr(slurm_jobs, "scontrol", scontrol)
    assert allocation(JOB).cores == {"n1": 8, "n2": 8, "n3": 8}
    with pytest.raises((UsageError, ClusterError)) as error:
        allocation(JOB | {variable: text})
    assert str(error.value).startswith(f"--slurm: {variable}")
    assert complaint in str(error.value)


def test_a_node_that_resolves_itself_to_loopback_gets_its_outgoing_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slurm_jobs, "own_address", {"10.0.0.2": "10.0.0.1"}.__getitem__)
    assert resolve({"a": "127.0.1.1", "b": "10.0.0.2"}) == {"a": "10.0.0.1", "b": "10.0.0.2"}
    assert resolve({"a": "127.0.0.1", "b": "127.0.0.1"}) == {"a": "127.0.0.1", "b": "127.0.0.1"}
    with pytest.raises(UsageError, match=r"node c: its address no-such-name\.invalid is unknown here"):
        resolve({"c": "no-such-name.invalid"})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (Options(), "no hosts given: use -H HOSTS, or --slurm"),
        (Options(hosts="h1", slurm=True), "-H and --slurm cannot be combined"),
        (Options(hosts="h1", requeue=True), "--requeue needs --slurm"),
        (Options(slurm=True), "--slurm: not inside a Slurm job"),
    ],
)
def test_options_that_conflict_are_refused(monkeypatch: pytest.MonkeyPatch, options: Options, sentence: str) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UsageError, match=sentence):
        run(options, Config())


def test_many_launchers_started_by_srun_are_refused() -> None:
    with pytest.raises(UsageError, match="srun started this command 3 times"):
        allocation({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_STEP_NUM_TASKS": "3"})


def test_a_heterogeneous_job_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--slurm: job 7 is heterogeneous, .* of its 2 parts\. Submit it as one"):
        allocation({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_HET_SIZE": "2"})


# the time limit


def told_by_slurm(status: int | None) -> int:
    """A training run that gets Slurm's signal for the time limit. The run ends with ``status`` if one is given."""
    try:
        signal.raise_signal(signal.SIGUSR1)
    except KeyboardInterrupt:
        if status is None:
            raise
    return 130 if status is None else status


@pytest.mark.parametrize(
    ("job", "status", "exit_status", "asked"),
    [("7", None, 130, [("requeue", "7")]), ("7", 130, 130, [("requeue", "7")]), ("7", 0, 0, []), (None, None, 130, [])],
)
def test_a_run_is_requeued_only_if_it_ends_because_its_time_is_up(
    monkeypatch: pytest.MonkeyPatch, job: str | None, status: int | None, exit_status: int, asked: list[tuple[str, str]]
) -> None:
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(requeue, "scontrol", lambda *arguments: called.append(arguments))
    assert requeue.requeued(job, partial(told_by_slurm, status)) == exit_status
    assert called == asked
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_requeue_is_tried_again_while_slurm_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, ...]] = []

    def scontrol(*arguments: str) -> str:
        asked.append(arguments)
        if len(asked) <= failures:
            raise ClusterError("scontrol requeue 7: Slurm did not answer within 30 s.")
        return ""

    monkeypatch.setattr(requeue, "scontrol", scontrol)
    monkeypatch.setattr(requeue, "RETRY_EVERY_S", 0.01)
    failures = 2
    assert requeue.requeued("7", partial(told_by_slurm, 130)) == 130
    assert asked == 3 * [("requeue", "7")]
    again = "scontrol requeue 7: Slurm did not answer within 30 s. Trying again in 0.01 s.\n"
    assert capsys.readouterr().out == f"job 7 has reached its time limit: requeueing it\n{2 * again}"
    failures = 1000
    monkeypatch.setattr(requeue, "RETRY_FOR_S", 0.0)
    with pytest.raises(ClusterError, match=r"^scontrol requeue 7: Slurm did not answer"):
        requeue.requeued("7", partial(told_by_slurm, 130))
    assert len(asked) == 4


class Supervisor:
    def __init__(self) -> None:
        self.interrupts = 0
        self.asked_to_end: set[int] = set()


@pytest.mark.parametrize(
    ("numbers", "interrupts", "asked_to_end"),
    [
        ([signal.SIGUSR1, signal.SIGUSR1], 1, {signal.SIGUSR1}),
        ([signal.SIGTERM, signal.SIGUSR1], 1, {signal.SIGTERM, signal.SIGUSR1}),
        ([signal.SIGUSR1, signal.SIGTERM], 1, {signal.SIGTERM, signal.SIGUSR1}),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGTERM], 1, {signal.SIGTERM}),
        ([signal.SIGTERM, signal.SIGINT], 2, {signal.SIGTERM, signal.SIGINT}),
        ([signal.SIGINT, signal.SIGINT, signal.SIGINT], 3, {signal.SIGINT}),
    ],
)
def test_a_first_ctrl_c_does_not_end_a_run_at_once_but_a_second_does(
    monkeypatch: pytest.MonkeyPatch, numbers: list[signal.Signals], interrupts: int, asked_to_end: set[int]
) -> None:
    supervisor: Any = Supervisor()

    def train() -> int:
        with interrupts_of(supervisor):
            for number in numbers:
                ends = number == signal.SIGINT and supervisor.interrupts == 1
                with pytest.raises(KeyboardInterrupt) if ends else contextlib.nullcontext():
                    signal.raise_signal(number)
        return TIME_IS_UP if supervisor.asked_to_end == {signal.SIGUSR1} else 130

    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(requeue, "scontrol", lambda *arguments: called.append(arguments))
    assert requeue.requeued("7", train) == 130
    assert (supervisor.interrupts, supervisor.asked_to_end) == (interrupts, asked_to_end)
    assert called == ([("requeue", "7")] if asked_to_end == {signal.SIGUSR1} else [])


ARRAY = """\
JobId=9 ArrayJobId=7 ArrayTaskId=1 JobName=first
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0

JobId=7 ArrayJobId=7 ArrayTaskId=3 JobName=first
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
"""


@pytest.mark.parametrize(
    ("told", "job", "name"),
    [(ARRAY, "7", "7_3"), (ARRAY.partition("\n\n")[0], "9", "7_1"), ("JobId=7 JobName=first", "7", "7")],
)
def test_the_requeue_of_a_task_of_a_job_array_does_not_touch_the_other_tasks(
    monkeypatch: pytest.MonkeyPatch, told: str, job: str, name: str
) -> None:
    monkeypatch.setattr(requeue, "scontrol", lambda *arguments: told)
    assert requeue.check(job, Config(run_dir=Path("run"))) == name


def test_a_run_that_a_user_interrupts_is_not_requeued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeue, "scontrol", None)
    assert requeue.requeued("7", lambda: 130) == 130

    def interrupted() -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    with pytest.raises(KeyboardInterrupt):
        requeue.requeued("7", interrupted)


@pytest.fixture
def resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float | None]:
    """Resume a run whose newest checkpoint is from minute 0, and whose shards hold a version of minute 4.

    Returns the minutes that are left for the session. This is None if the run has ended.
    """
    sessions: list[Config] = []

    def supervise(config: Config, *_: object) -> int:
        sessions.append(config)
        return 0

    def salvage(directory: RunDirectory, newest: Checkpoint, _: object) -> Checkpoint:
        return dataclasses.replace(newest, version=40, counters=Counters(version=40, wall_s=240.0).to_json())

    def start(minutes: float) -> float | None:
        sessions.clear()
        config = dataclasses.replace(cartpole(), run_dir=tmp_path, minutes=minutes, resume=True)
        assert train_on(config, lambda config, directory, _: on_this_machine(config, directory), in_total=True) == 0
        return sessions[0].minutes if sessions else None

    monkeypatch.setattr(run_of_training, "_supervise", supervise)
    monkeypatch.setattr(run_of_training, "salvage", salvage)
    config = dataclasses.replace(cartpole(), minutes=10.0)
    write_json(RunDirectory(tmp_path).config, config.to_json())
    initial_checkpoint(config, describe_env(config.env, config.envs)).write(RunDirectory(tmp_path).checkpoints)
    return start


def test_a_limit_of_minutes_applies_to_all_starts_of_the_job_together(
    resumed: Callable[..., float | None], tmp_path: Path
) -> None:
    assert resumed(10.0) == 6.0
    assert Config.read(RunDirectory(tmp_path).config).minutes == 10.0
    assert resumed(10.0) == 6.0


def test_a_run_whose_minutes_are_up_gets_its_summary_and_is_then_refused(
    resumed: Callable[..., float | None], tmp_path: Path
) -> None:
    assert resumed(4.0) is None
    assert RunFiles(tmp_path).summary()["exit_reason"] == "minutes"
    with pytest.raises(UsageError, match=r"--minutes 4: .* has already reached 4: set a higher limit to resume"):
        resumed(4.0)


# a real Slurm


@pytest.fixture
def zmqrl(slurm: Slurm) -> Callable[..., str]:
    """Run `zmqrl` as it would run on a node. Returns its output."""
    return lambda *arguments: slurm.inside("zmqrl", *arguments)


def saw(slurm: Slurm, log: Path, condition: Callable[[], bool], what: str) -> None:
    try:
        eventually(condition, what, WITHIN_S)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text() if log.exists() else ''}\n{slurm.logs()}") from error


def test_a_job_that_reaches_its_time_limit_is_requeued_until_the_run_has_ended(
    slurm: Slurm, zmqrl: Callable[..., str], tmp_path: Path
) -> None:
    job = slurm(
        *("sbatch", "--parsable", "--nodes=3", "--cpus-per-task=2", "--time=10", "--job-name=one", str(SCRIPT)),
        *("cartpole", "--workers", "3", "--shards", "2", "--updates", "120", "--straggle", "0:0.1", *QUICKLY),
        cwd=tmp_path,
    ).strip()
    files, log = RunFiles(tmp_path / "runs" / f"one-{job}"), tmp_path / f"one-{job}.log"
    saw(slurm, log, lambda: files.version() >= 20, "version 20")
    found = json.loads(zmqrl("status", str(files.path), "--json"))
    assert found["state"] == "running"
    assert {each["host"] for each in found["processes"]} == set(NODES)
    # Slurm sends this signal at the time limit.
    slurm("scancel", "--batch", "--signal=USR1", job)
    saw(slurm, log, lambda: (files.path / "summary.json").exists(), "the end of the first start")
    interrupted = files.assert_summary_exact("interrupted", quorum=3)
    assert interrupted["updates"] < 120
    saw(slurm, log, lambda: slurm.state(job) == "COMPLETED", "the end of the job")
    assert f"job {job} has reached its time limit: requeueing it" in log.read_text()
    assert "settings changed" not in log.read_text()
    assert f"resuming from version {interrupted['updates']}" in log.read_text()
    files.assert_summary_exact("updates", quorum=3)
    files.assert_history_exact(120, quorum=3)
    left = [Path("/var/tmp/zmqrl-0") / node / directory_name(RunDirectory(files.path), "zmqrl-tests") for node in NODES]
    assert not any(path.exists() for path in left)


def test_a_killed_launcher_leaves_no_processes_and_status_can_query_the_nodes(slurm: Slurm, tmp_path: Path) -> None:
    job, path = slurm.allocate(), tmp_path / "run"
    told = {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_CPUS_PER_NODE": "2(x3)"}
    command = ["zmqrl", "launch", "--slurm", "cartpole", "--workers", "2", "--shards", "2", "--run-dir", str(path)]
    with ending(subprocess.Popen(command, env=os.environ | slurm.environment | told)):
        files = RunFiles(path)
        eventually(lambda: files.version() >= 3, "some versions", WITHIN_S)
        pids = [each["pid"] for role in ("shards", "workers") for each in files.cluster()[role]]
        assert all(map(slurm.alive, pids))
    try:
        eventually(lambda: not any(map(slurm.alive, pids)), "the end of its processes", 15)
        found = json.loads(slurm("zmqrl", "status", str(path), "--json"))
        assert found["state"] == "killed"
        assert {node: answer["alive"] for node, answer in found["hosts"].items()} == dict.fromkeys(NODES, False)
    finally:
        slurm("scancel", job)
    eventually(lambda: slurm.state(job) == "CANCELLED", "the end of the job", WITHIN_S)
    assert "no process of" in slurm("zmqrl", "stop", str(path))


def test_a_released_node_is_distinguished_from_one_that_does_not_answer(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm("sbatch", "--parsable", "--nodelist=n1", "--wrap", "sleep 60", cwd=tmp_path).strip()
    try:
        eventually(lambda: slurm.state(job) == "RUNNING", "the start of the job", WITHIN_S)
        assert is_over(slurm(*srun_command(job, "n2", ["true"]), check=False)), "as after a requeue on other nodes"
        assert not is_over(slurm(*srun_command(job, "n1", ["no-such-python"]), check=False))
    finally:
        slurm("scancel", job)
    eventually(lambda: slurm.state(job) == "CANCELLED", "the end of the job", WITHIN_S)
    assert is_over(slurm(*srun_command(job, "n1", ["true"]), check=False))


@pytest.mark.slow
def test_a_run_whose_job_is_cancelled_reports_the_cancellation_and_keeps_its_newest_checkpoint(
    slurm: Slurm, tmp_path: Path
) -> None:
    job = slurm(
        *("sbatch", "--parsable", "--nodes=3", "--cpus-per-task=2", "--job-name=one", str(SCRIPT)),
        *("cartpole", "--workers", "2", "--shards", "1", "--checkpoint.every-minutes", "0.02", *QUICKLY),
        cwd=tmp_path,
    ).strip()
    files, log = RunFiles(tmp_path / "runs" / f"one-{job}"), tmp_path / f"one-{job}.log"
    saw(slurm, log, lambda: log.exists() and "checkpoint of version" in log.read_text(), "a checkpoint")
    slurm("scancel", job)
    saw(slurm, log, lambda: slurm.state(job) == "CANCELLED", "the end of the job")
    assert files.assert_summary_exact("interrupted", shards=1)["updates"] > 0
    assert "every host is lost" in log.read_text()
    assert not (files.path / "cluster.json").exists()


def test_a_dry_run_shows_the_nodes_of_the_job_and_their_cores(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = slurm("salloc", "--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=1", "env").splitlines()
    for name, _, value in (line.partition("=") for line in environment if line.startswith("SLURM_")):
        monkeypatch.setenv(name, value)
    config = dataclasses.replace(over_tcp(cartpole()), workers=4)
    assert run(Options(slurm=True, exclude="n2", dry_run=True), config) == 0
    said = capsys.readouterr().out
    assert "n2" not in said
    assert "2 hosts of 2 will run more workers than cores, n1 the most: 2 workers on 1 core." in said
    assert said.count("--overlap") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_cannot_be_requeued_is_refused_at_once(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    allocated = slurm.allocate()
    submitted = slurm("sbatch", "--parsable", "--no-requeue", "--wrap", "sleep 1", cwd=tmp_path).strip()
    try:
        with pytest.raises(UsageError, match="requires --run-dir"):
            requeue.check(submitted, Config())
        with pytest.raises(UsageError, match="was not submitted with sbatch"):
            requeue.check(allocated, Config(run_dir=tmp_path))
        with pytest.raises(UsageError, match="submit it with sbatch --requeue"):
            requeue.check(submitted, Config(run_dir=tmp_path))
    finally:
        slurm("scancel", allocated, submitted)
