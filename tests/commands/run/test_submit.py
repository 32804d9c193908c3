"""``zmqrl launch --slurm-login``: a run is submitted over ssh, followed and fetched, stopped, and shown again.

Stand-ins replace ssh and Slurm: see ``support/stand_in_slurm.py``.
"""

import dataclasses
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from support.commands import ran
from support.record_rig import row, run_directory, summary
from support.rig import ending, eventually, is_alive
from support.run_rig import QUICKLY, RunFiles, started
from support.slurm import Slurm
from support.stand_in_slurm import StandInSlurm

from zmqrl import cli
from zmqrl.commands.inspect import follow
from zmqrl.commands.inspect.follow import FETCH_EVERY_S, LOOK_EVERY_S
from zmqrl.commands.inspect.status import status
from zmqrl.commands.run import submit
from zmqrl.errors import ClusterError, UsageError
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.ways import login_node
from zmqrl.hosts.ways.login_node import LATE_S, LoginNode, Submitted, Unanswered
from zmqrl.local import extras
from zmqrl.rundir import RunDirectory

pytestmark = pytest.mark.processes

WITHIN_S = 120.0
# A job that takes its result from a run directory that the test has written.
JOB = """
trap 'echo ending; cp {result}/interrupted.json "$1"/summary.json; exit 130' TERM
mkdir -p "$1"/keys; echo secret > "$1"/keys/worker-0.json
cp {result}/config.json {result}/metrics.jsonl "$1"
echo "time 0:00:01; speed 1,000 agent steps/s"
while [ -e {state}/wait ]; do sleep 0.05; done
cp {result}/summary.json "$1"
"""
SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
StrictModes no
UsePAM no
"""
SSH = """\
Host h1
  HostName 127.0.0.1
  Port {port}
  User root
  IdentityFile {directory}/user
  StrictHostKeyChecking no
  UserKnownHostsFile {directory}/known_hosts
Host nowhere
  HostName 127.0.0.1
  Port 1
"""
OPTIONS = ("--slurm-login", "login", "--login-dir", "work/runs")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInSlurm]:
    """A cluster whose jobs have the result of a short run. While the file ``wait`` exists, the jobs do not end."""
    stand_in = StandInSlurm(tmp_path)
    monkeypatch.setenv("PATH", f"{stand_in.bin}:{os.environ['PATH']}")
    monkeypatch.setattr(follow, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(follow, "FETCH_EVERY_S", 0.1)
    result = run_directory(tmp_path / "result", [row(1)], summary=summary(exit_status=0))
    interrupted = summary(exit_reason="interrupted", exit_status=130)
    (result / "interrupted.json").write_text(json.dumps(interrupted), encoding="utf-8")
    stand_in.program(JOB.format(result=result, state=stand_in.state))
    yield stand_in
    stand_in.end()


@pytest.fixture
def detached(stand_in: StandInSlurm, tmp_path: Path) -> Path:
    """The run directory of a detached run whose job does not end."""
    (stand_in.state / "wait").touch()
    run = tmp_path / "run"
    assert launch(run, "--detach") == 0
    return run


def launch(run: Path, *options: str) -> int:
    return cli.run(["launch", *OPTIONS, "cartpole", "--updates", "60", "--run-dir", str(run), *options])


def test_a_run_is_submitted_followed_and_fetched(
    stand_in: StandInSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "first"
    assert launch(run, "--sbatch=--nodes 4 --time 1:00:00", "--lease-s", "10") == 0
    there = stand_in.home / "work" / "runs"
    assert (stand_in.state / "script").read_text() == (
        f"#!/bin/bash\nexec {sys.executable} -P -m zmqrl launch --slurm --requeue cartpole --updates 60 --lease-s 10 "
        f"--run-dir {there}/first\n"
    )
    (submitted,) = [line for line in stand_in.calls().splitlines() if line.startswith("sbatch --parsable")]
    assert submitted.endswith(f"--chdir={there} --nodes 4 --time 1:00:00 --output={there}/first.log")
    assert "--signal=B:USR1@180 --requeue" in submitted
    said = capsys.readouterr().out
    assert f"submitted job 7 on login; run directory: {run} here, {there}/first there\n" in said
    assert "time 0:00:01; speed 1,000 agent steps/s\n" in said
    assert "job 7: COMPLETED\n" in said
    assert {path.name for path in run.iterdir()} == {"submitted.json", "config.json", "metrics.jsonl", "summary.json"}


NEW = "cartpole-20261128-120000"


@pytest.fixture
def new_run(stand_in: StandInSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Submitted]:
    """Submit a run in a directory here, always at the same time. Returns its job."""
    monkeypatch.setattr(submit, "new_path", lambda recipe: Path("runs", NEW))

    def new_run(directory: str) -> Submitted:
        where = tmp_path / directory
        where.mkdir(exist_ok=True)
        monkeypatch.chdir(where)
        before = {path.parent for path in where.glob("runs/*/submitted.json")}
        assert cli.run(["launch", *OPTIONS, "cartpole", "--updates", "60", "--detach"]) == 0
        (path,) = {path.parent for path in where.glob("runs/*/submitted.json")} - before
        job = Submitted.read(path)
        assert job is not None
        assert Path(job.run_dir).name == path.name
        assert f"--run-dir {job.run_dir}\n" in (stand_in.state / "script").read_text()
        assert f"--job-name={Path(job.run_dir).name} " in stand_in.calls().splitlines()[-1]
        assert job.log == f"{job.run_dir}.log"
        return job

    return new_run


def test_runs_that_are_submitted_at_the_same_time_have_their_own_directories(
    stand_in: StandInSlurm, tmp_path: Path, new_run: Callable[[str], Submitted]
) -> None:
    there = stand_in.home / "work" / "runs"
    jobs = [new_run("here") for _ in range(3)]
    assert [job.run_dir for job in jobs] == [f"{there}/{NEW}{number}" for number in ("", "-2", "-3")]
    assert {path.name for path in (tmp_path / "here" / "runs").iterdir()} == {NEW, f"{NEW}-2", f"{NEW}-3"}
    assert new_run("elsewhere").run_dir == f"{there}/{NEW}-4", "another machine can use the same login node"
    (tmp_path / "third" / "runs" / f"{NEW}-5").mkdir(parents=True)
    assert new_run("third").run_dir == f"{there}/{NEW}-6", "the fifth name is taken here"
    assert new_run("elsewhere").run_dir == f"{there}/{NEW}-5", "it is still free there"


def test_only_one_of_several_submissions_gets_a_name(stand_in: StandInSlurm) -> None:
    (stand_in.home / "work" / NEW).mkdir(parents=True)
    with LoginNode("login", None) as node, ThreadPoolExecutor(6) as pool:
        taken = set(pool.map(lambda _: node.take_name("work", NEW), range(6)))
        assert taken == {(str(stand_in.home / "work"), f"{NEW}-{number}") for number in range(2, 8)}
        node.give_back("work", f"{NEW}-3")
        assert node.take_name("work", NEW)[1] == f"{NEW}-3"
        (stand_in.home / "file").touch()
        with pytest.raises(ClusterError, match=r"^sh on login failed: mkdir: "):
            node.take_name("file", NEW)


def test_a_run_that_is_not_submitted_leaves_nothing(
    stand_in: StandInSlurm, tmp_path: Path, new_run: Callable[[str], Submitted]
) -> None:
    (stand_in.bin / "sbatch").write_text("#!/bin/sh\necho 'no such partition' >&2; exit 1\n", encoding="utf-8")
    with pytest.raises(ClusterError, match=r"^sbatch on login failed: no such partition\.$"):
        new_run("here")
    assert list((tmp_path / "here" / "runs").iterdir()) == []
    assert list((stand_in.home / "work" / "runs").iterdir()) == []


def test_a_run_that_is_not_submitted_leaves_no_log_even_if_its_directory_must_stay(
    stand_in: StandInSlurm, tmp_path: Path, new_run: Callable[[str], Submitted]
) -> None:
    kept = tmp_path / "here" / "runs" / NEW / "kept"
    (stand_in.bin / "sbatch").write_text(f"#!/bin/sh\ntouch {kept}; exit 1\n", encoding="utf-8")
    with pytest.raises(ClusterError, match=r"^sbatch on login failed"):
        new_run("here")
    assert kept.exists()
    assert list((stand_in.home / "work" / "runs").iterdir()) == []


def test_ctrl_c_before_the_submission_leaves_nothing(
    stand_in: StandInSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_run: Callable[[str], Submitted]
) -> None:
    def interrupted(*_: object) -> NoReturn:
        assert (tmp_path / "here" / "runs" / NEW).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(submit, "job_script", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new_run("here")
    assert list((tmp_path / "here" / "runs").iterdir()) == []
    assert list((stand_in.home / "work" / "runs").iterdir()) == []
    assert "sbatch" not in stand_in.calls()


def test_ctrl_c_during_the_submission_names_the_command_that_finds_the_job(
    stand_in: StandInSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    new_run: Callable[[str], Submitted],
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(LoginNode, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new_run("here")
    assert capsys.readouterr().out == f"The job may have been submitted: `squeue --name {NEW}` on login shows it.\n"
    assert (stand_in.home / "work" / "runs" / f"{NEW}.log").exists(), "the job may write to it"


@pytest.mark.parametrize("how", [["--resume", "{run}"], ["--resume", "--run-dir", "{run}"]], ids=["short", "long"])
def test_a_run_is_resumed_in_its_own_directory(
    stand_in: StandInSlurm, tmp_path: Path, new_run: Callable[[str], Submitted], how: list[str]
) -> None:
    job = new_run("here")
    run = tmp_path / "here" / "runs" / NEW
    assert cli.run(["attach", str(run)]) == 0
    options = [word.format(run=run) for word in how]
    assert cli.run(["launch", *OPTIONS, *options, "--updates", "90", "--detach"]) == 0
    script = (stand_in.state / "script").read_text()
    assert script.endswith(f" launch --slurm --requeue --resume --updates 90 --run-dir {job.run_dir}\n")
    assert list(run.parent.iterdir()) == [run]
    assert Submitted.read(run) == dataclasses.replace(job, earlier=RunDirectory(run).summary_digest())


def test_the_summary_of_an_earlier_job_is_not_the_result_of_the_newest(
    stand_in: StandInSlurm, tmp_path: Path, new_run: Callable[[str], Submitted]
) -> None:
    new_run("here")
    run = tmp_path / "here" / "runs" / NEW
    assert cli.run(["attach", str(run)]) == 0
    assert status(run)["state"] == "ended"
    (stand_in.state / "wait").touch()
    stand_in.program(f"while [ -e {stand_in.state}/wait ]; do sleep 0.01; done; exit 3")
    assert cli.run(["launch", *OPTIONS, "--resume", str(run), "--updates", "90", "--detach"]) == 0
    assert status(run)["state"] == "submitted"
    (stand_in.state / "wait").unlink()
    for _ in range(2):
        with pytest.raises(ClusterError, match=r"job 7 ended \(COMPLETED\) without a result"):
            cli.run(["attach", str(run)])
        assert status(run)["state"] == "ended", "as before this job"


def test_all_commands_share_one_connection(stand_in: StandInSlurm, tmp_path: Path) -> None:
    assert launch(tmp_path / "run") == 0
    ssh = [line for line in stand_in.calls().splitlines() if "ControlPath" in line]
    assert len(ssh) > 4
    assert sum("ControlMaster=yes" in line for line in ssh) == 1
    assert len({line.partition("ControlPath=")[2].split()[0] for line in ssh}) == 1


def test_the_reason_of_a_failure_at_a_jump_host_is_shown(
    stand_in: StandInSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = "printf 'me@jump: Permission denied (publickey).\\r\\nConnection closed by UNKNOWN port 65535\\r\\n' >&2"
    (stand_in.bin / "ssh").write_text(f"#!/bin/sh\necho $SSH_ASKPASS_REQUIRE > {tmp_path}/asks; {says}; exit 255")
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "prefer")
    why = r"me@jump: Permission denied \(publickey\)\. / Connection closed by UNKNOWN port 65535\.$"
    with pytest.raises(ClusterError, match=f"^login cannot be reached: {why}"), LoginNode("login", None):
        pass
    assert (tmp_path / "asks").read_text() == "never\n"


@pytest.mark.parametrize("on_term", ["echo >> ended; exit", ""], ids=["obedient", "stubborn"])
def test_what_ssh_has_started_ends_with_each_command(
    stand_in: StandInSlurm, monkeypatch: pytest.MonkeyPatch, on_term: str
) -> None:
    """Such as a ProxyCommand that ignores the end of its input."""
    ssh, proxy, seen = stand_in.bin / "ssh", stand_in.bin / "proxy", stand_in.state
    proxy.write_text(f"trap '{on_term}' TERM; cd {seen}; echo $$ >> proxies; while :; do sleep 0.02; done")
    first, rest = ssh.read_text().split("\n", 1)
    ssh.write_text(f"{first}\nsh {proxy} <&- >&- 2>&- &\n{rest}")
    with LoginNode("login", None) as node:
        assert node.run(["echo", "hello"]) == b"hello\n"
        monkeypatch.setattr(login_node, "ANSWER_WITHIN_S", 1.0)
        with pytest.raises(Unanswered):
            node.run(["sleep", "600"])
    pids = [int(pid) for pid in (seen / "proxies").read_text().split()]
    assert len(pids) == 3
    eventually(lambda: not any(map(is_alive, pids)), "the end of the proxies")
    if on_term:
        assert (seen / "ended").read_text().count("\n") == 3


def test_ctrl_c_ends_the_run_with_a_checkpoint(
    stand_in: StandInSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stand_in.state / "wait").touch()
    run = tmp_path / "run"

    def interrupt() -> None:
        eventually(lambda: (run / "metrics.jsonl").exists(), "files", WITHIN_S)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert launch(run) == 130
    thread.join()
    assert "scancel --clusters=cluster --batch --signal=TERM 7\n" in stand_in.calls()
    said = capsys.readouterr().out
    assert "ending the run with a checkpoint" in said
    assert "ending\n" in said


def test_a_job_that_has_not_begun_is_removed_from_the_queue(
    stand_in: StandInSlurm, detached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stand_in.pending():
        assert cli.run(["stop", str(detached)]) == 0
    with pytest.raises(UsageError, match=r"has no files yet of its run, which was submitted: zmqrl attach shows it\."):
        status(detached)
    run_directory(tmp_path / "config")
    (tmp_path / "config" / "config.json").rename(detached / "config.json")
    assert status(detached)["state"] == "submitted"
    assert "scancel --clusters=cluster 7\n" in stand_in.calls()
    assert capsys.readouterr().out.endswith("job 7 was asked to end\n")


def test_a_lost_connection_leaves_the_job_and_attach_shows_it_again(
    stand_in: StandInSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stand_in.state / "wait").touch()
    run = tmp_path / "run"

    def cut() -> None:
        eventually(lambda: (run / "metrics.jsonl").exists(), "files", WITHIN_S)
        (stand_in.state / "cut").touch()

    thread = threading.Thread(target=cut)
    thread.start()
    with pytest.raises(
        ClusterError, match=rf"is lost: .*\. Job 7 is not affected: zmqrl attach {run} shows it again\."
    ):
        launch(run)
    thread.join()
    with pytest.raises(ClusterError, match=r"^login cannot be reached: .*No route to host\. Job 7 is not affected"):
        cli.run(["attach", str(run)])
    (stand_in.state / "cut").unlink()
    (stand_in.state / "wait").unlink()
    capsys.readouterr()
    assert cli.run(["attach", str(run)]) == 0
    assert "time 0:00:01; speed 1,000 agent steps/s\n" in capsys.readouterr().out
    assert (run / "summary.json").exists()


def test_a_job_without_a_result_names_its_log(stand_in: StandInSlurm, tmp_path: Path) -> None:
    stand_in.program("echo zmqrl: --workers 0: must be 1 or more.; exit 2")
    with pytest.raises(
        ClusterError, match=r"job 7 ended \(COMPLETED\) without a result: its log is \S+/run.log on login"
    ):
        launch(tmp_path / "run")
    run_directory(tmp_path / "config")
    (tmp_path / "config" / "config.json").rename(tmp_path / "run" / "config.json")
    assert status(tmp_path / "run")["state"] == "killed"


def test_what_the_shell_of_the_login_node_prints_is_skipped(
    stand_in: StandInSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stand_in.state / "greeting").write_text("Welcome!\n1700000000\nLoading modules ...")
    run = tmp_path / "run"
    assert launch(run) == 0
    said = capsys.readouterr().out
    assert "submitted job 7 on login" in said
    assert "job 7: COMPLETED\n" in said
    assert "Welcome" not in said
    assert (run / "metrics.jsonl").exists()


def test_a_login_node_whose_shell_runs_no_command_is_reported(stand_in: StandInSlurm, tmp_path: Path) -> None:
    (stand_in.bin / "ssh").write_text("#!/bin/sh\necho no jobs today\n", encoding="utf-8")
    with pytest.raises(ClusterError, match=r"^sh did not run on login: its shell printed b'no jobs today"):
        launch(tmp_path / "run")


def test_a_login_node_that_does_not_answer_is_reported(
    stand_in: StandInSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_node, "CONNECTED_WITHIN_S", 0.1)
    (stand_in.state / "hang").touch()
    with pytest.raises(ClusterError, match=r"^login cannot be reached: no answer within 0\.1 s\.$"):
        launch(tmp_path / "run")


def test_the_cluster_on_which_sbatch_started_the_job_is_asked_for_its_state(
    stand_in: StandInSlurm, detached: Path
) -> None:
    job = Submitted.read(detached)
    assert job is not None
    assert (job.job, job.cluster) == ("7", "cluster")
    squeue = stand_in.bin / "squeue"
    with LoginNode("login", None) as node:
        for said, state in (("PENDING Priority", "PENDING"), ("", "GONE")):
            squeue.write_text(f'#!/bin/sh\necho "$@" >> {stand_in.state}/calls\necho "CLUSTER: cluster\n{said}"\n')
            assert node.state(job) == state
            assert stand_in.calls().endswith(" --clusters=cluster --jobs 7\n")
    (stand_in.bin / "sbatch").write_text("#!/bin/sh\necho 8\n")
    with LoginNode("login", None) as node:
        assert node.submit((), "") == ("8", None)
    assert Submitted(host="login", ssh_config=None, job="8", run_dir="r", log="r.log").on_its_cluster == []


CONTROLLER = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


def test_a_job_is_not_over_while_slurm_does_not_answer(
    stand_in: StandInSlurm, detached: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Submitted.read(detached)
    assert job is not None
    with LoginNode("login", None) as node:
        (stand_in.state / "squeue_error").write_text(f"{CONTROLLER}\n")
        assert node.look(job, 0)[:2] == ("UNKNOWN", CONTROLLER)
        assert cli.run(["stop", str(detached)]) == 0
        assert "scancel --clusters=cluster --batch --signal=TERM 7\n" in stand_in.calls()
        assert capsys.readouterr().out.endswith("job 7 was asked to end\n")
        (stand_in.state / "squeue_error").write_text("slurm_load_jobs error: Invalid job id specified\n")
        assert node.look(job, 0)[:2] == ("GONE", "")


def test_a_second_job_for_the_same_run_is_refused_until_the_first_has_ended(
    stand_in: StandInSlurm, detached: Path
) -> None:
    with pytest.raises(
        UsageError, match=rf"^job 7 of {detached} has not ended \(RUNNING\): `zmqrl attach {detached}` shows it"
    ):
        launch(detached)
    assert sum(line.startswith("sbatch") for line in stand_in.calls().splitlines()) == 1
    (stand_in.state / "wait").unlink()
    eventually(lambda: launch_unless_running(detached) == 0, "the first job has ended", WITHIN_S)


def launch_unless_running(run: Path) -> int | None:
    try:
        return launch(run)
    except UsageError:
        return None


def test_a_job_that_cannot_be_noted_here_is_removed(
    stand_in: StandInSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(job: Submitted, path: Path) -> None:
        raise OSError(28, "No space left on device")

    (stand_in.state / "wait").touch()
    monkeypatch.setattr(Submitted, "write", write)
    with pytest.raises(OSError, match="No space left"):
        launch(tmp_path / "run")
    assert "scancel --clusters=cluster 7\n" in stand_in.calls()


def test_a_directory_that_cannot_be_made_here_is_an_error_before_the_job_is_submitted(
    stand_in: StandInSlurm, tmp_path: Path
) -> None:
    (tmp_path / "run").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        launch(tmp_path / "run")
    assert "sbatch" not in stand_in.calls()


def test_a_summary_of_an_earlier_session_is_no_result(stand_in: StandInSlurm, tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run", [row(1)], summary=summary(exit_status=0))
    (run / "config.json").unlink()
    stand_in.program("exit 2")
    with pytest.raises(ClusterError, match="without a result"):
        launch(run)


# Its first start ends before the time limit, so it waits in the queue. Then its second start fails.
REQUEUED = """
mkdir -p "$1"; cp {result}/config.json "$1"; cp {result}/interrupted.json "$1"/summary.json
while [ ! -e {state}/fetched ]; do sleep 0.05; done
rm "$1"/summary.json; exit 3
"""


def test_a_requeued_job_is_submitted_and_the_summary_of_its_first_start_is_no_result(
    stand_in: StandInSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.program(REQUEUED.format(result=tmp_path / "result", state=stand_in.state))
    run, states, fetch = tmp_path / "run", list[str](), LoginNode.fetch

    def fetched(node: LoginNode, job: Submitted, to: Path, since: int) -> int | None:
        now = fetch(node, job, to, since)
        if (run / "config.json").exists():
            states.append(status(run)["state"])
            (stand_in.state / "fetched").touch()
        else:  # an older zmqrl could leave the summary here
            shutil.copy(tmp_path / "result" / "interrupted.json", run / "summary.json")
        return now

    monkeypatch.setattr(LoginNode, "fetch", fetched)
    with pytest.raises(ClusterError, match="without a result"):
        launch(run)
    assert set(states) == {"submitted"}


def test_the_result_of_a_job_that_ended_long_ago_is_fetched(stand_in: StandInSlurm, tmp_path: Path) -> None:
    stand_in.program(f"{JOB.format(result=tmp_path / 'result', state=stand_in.state)}touch -d @1000 $1/summary.json")
    assert launch(tmp_path / "run") == 0


def test_files_with_another_clock_arrive_at_the_latest_when_the_job_ends(
    stand_in: StandInSlurm, tmp_path: Path
) -> None:
    here, result = tmp_path / "run", tmp_path / "result"
    late = f"until [ -e {here}/config.json ]; do sleep 0.05; done; echo late > $1/late; touch -d @1000 $1/late"
    stand_in.program(f"mkdir -p $1; cp {result}/config.json $1; {late}; cp {result}/summary.json $1")
    assert launch(here) == 0
    assert (here / "late").read_text() == "late\n"


def test_old_checkpoints_are_removed_here_as_on_the_cluster(
    stand_in: StandInSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, fetch = ["v00000001", "v00000002", "v00000003"], LoginNode.fetch
    make = "".join(f"mkdir -p $1/checkpoints/{name}; touch $1/checkpoints/{name}/manifest.json; " for name in names)
    result = run_directory(tmp_path / "kept", summary=summary(exit_status=0), checkpoint={"keep": 2})
    fetched = stand_in.state / "fetched"
    stand_in.program(f"{make} while [ ! -e {fetched} ]; do sleep 0.05; done; cp {result}/*.json $1")

    def fetch_within_a_second(node: LoginNode, job: Submitted, to: Path, since: int) -> int | None:
        if fetch(node, job, to, since) is None or not (to / "checkpoints").exists():
            return None
        fetched.touch()
        return 5

    monkeypatch.setattr(LoginNode, "fetch", fetch_within_a_second)
    run = tmp_path / "run"
    assert launch(run) == 0
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names[1:]


def test_ctrl_c_removes_a_job_that_waits_in_the_queue(
    stand_in: StandInSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.program("exec sleep 600")

    def interrupt() -> None:
        eventually((stand_in.state / "looked").exists, "the state of the job", WITHIN_S)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with stand_in.pending():
        assert launch(tmp_path / "run") == 130
    thread.join()
    said = capsys.readouterr().out
    assert "removing the job from the queue" in said
    assert said.endswith("job 7 was removed from the queue\n")


def test_the_last_line_of_a_log_is_shown_even_if_it_does_not_end(
    stand_in: StandInSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.program("printf 'out of memory'; exit 1")
    with pytest.raises(ClusterError, match="without a result"):
        launch(tmp_path / "run")
    assert "out of memory\n" in capsys.readouterr().out


@pytest.mark.parametrize(("copy_s", "pause_s"), [(0.5, FETCH_EVERY_S), (6.0, 60.0)])
def test_files_that_take_long_to_copy_are_copied_less_often(
    copy_s: float, pause_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, begun = [0.0], list[float]()

    def wait(seconds: float) -> None:
        now[0] += seconds

    def fetch(job: Submitted, run: Path, since: int) -> None:
        begun.append(now[0])
        wait(copy_s)

    def look(job: Submitted, read: int) -> tuple[str, str, bytes]:
        return ("RUNNING" if now[0] < 300 else "COMPLETED"), "", b""

    monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=wait))
    job = Submitted(host="login", ssh_config=None, job="7", run_dir="there", log="log")
    node: Any = SimpleNamespace(look=look, fetch=fetch)
    follow._Following(node, job, tmp_path, 0).until_the_end()
    pauses = [after - before - copy_s for before, after in itertools.pairwise(begun)]
    assert len(pauses) >= 3
    assert all(pause_s <= pause < pause_s + LOOK_EVERY_S for pause in pauses)


def test_files_that_do_not_arrive_are_an_error_and_not_an_empty_directory(
    stand_in: StandInSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Submitted(host="login", ssh_config=None, job="7", run_dir=str(tmp_path / "there"), log="log")
    with LoginNode("login", None) as node:
        assert node.fetch(job, tmp_path, 5) is None, "there is no run directory yet"
        (stand_in.state / "cut").touch()
        with pytest.raises(ClusterError, match=r"^the connection to login is lost: ssh: .* No route to host\.$"):
            node.fetch(job, tmp_path, 5)
        (stand_in.state / "cut").unlink()
        monkeypatch.setattr(login_node, "ANSWER_WITHIN_S", 0.1)
        (stand_in.state / "hang").touch()
        with pytest.raises(ClusterError, match=r"^login has not answered for 0\.1 s\.$"):
            node.fetch(job, tmp_path, 5)


def test_files_arrive_with_a_python_whose_tarfile_has_no_filters(
    stand_in: StandInSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(self: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        extract(self, member, path, filter="fully_trusted")

    extract = tarfile.TarFile.extract
    monkeypatch.delattr(tarfile, "data_filter")
    monkeypatch.setattr(tarfile.TarFile, "extract", older)
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "videos").mkdir(parents=True)
    here.mkdir()
    (there / "videos" / "game.mp4").write_text("a game")
    (there / "link").symlink_to("/etc")
    os.mkfifo(there / "pipe")
    if os.geteuid() == 0:
        os.chown(there / "videos" / "game.mp4", 1234, 1234)
    job = Submitted(host="login", ssh_config=None, job="7", run_dir=str(there), log="log")
    with LoginNode("login", None) as node:
        assert node.fetch(job, here, 0)
        assert [path.name for path in here.iterdir()] == ["videos"]
        assert (here / "videos" / "game.mp4").read_text() == "a game"
        assert (here / "videos" / "game.mp4").stat().st_uid == os.getuid()
        for member in ("../there/config.json", str(there / "config.json")):
            (there / "config.json").write_text("{}")
            monkeypatch.setattr(login_node, "SEND", f"echo 5; tar -cP -C {here} {member}")
            with pytest.raises(ClusterError, match=r"did not arrive: '\S+ is outside of the run directory\.$"):
                node.fetch(job, here, 0)


@pytest.mark.usefixtures("stand_in")
def test_a_file_that_arrives_in_part_does_not_replace_the_one_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "sent.tar", "w") as sent:
        file = tarfile.TarInfo("metrics.jsonl")
        file.size = 100_000
        sent.addfile(file, io.BytesIO(b"x" * file.size))
    (here := tmp_path / "here").mkdir()
    (here / "metrics.jsonl").write_text("the rows before")
    monkeypatch.setattr(login_node, "SEND", f"echo 5; exec head -c 50000 {tmp_path}/sent.tar")
    job = Submitted(host="login", ssh_config=None, job="7", run_dir="there", log="log")
    with LoginNode("login", None) as node, pytest.raises(ClusterError, match="did not arrive"):
        node.fetch(job, here, 0)
    assert {path.name: path.read_text() for path in here.iterdir()} == {"metrics.jsonl": "the rows before"}


@pytest.mark.usefixtures("stand_in")
def test_a_login_node_cannot_write_a_file_from_which_commands_run_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["left.json", "./old-hosts.json", ".//cluster.json", "submitted.json", "page.json", "keys/worker-0.json"]
    with tarfile.open(tmp_path / "sent.tar", "w") as sent:
        link = tarfile.TarInfo("aside")
        link.type, link.linkname = tarfile.SYMTYPE, "."
        sent.addfile(link)
        for name in (*names, "state/shard-0.slots", ".lock", "aside/left.json", "./config.json"):
            file = tarfile.TarInfo(name)
            file.size = 2
            sent.addfile(file, io.BytesIO(b"{}"))
    (here := tmp_path / "here").mkdir()
    monkeypatch.setattr(login_node, "SEND", f"echo 5; exec cat {tmp_path}/sent.tar")
    job = Submitted(host="login", ssh_config=None, job="7", run_dir="there", log="log")
    with LoginNode("login", None) as node:
        assert node.fetch(job, here, 0) == 5
    assert sorted(str(path.relative_to(here)) for path in here.rglob("*.*")) == ["aside/left.json", "config.json"]
    assert not (here / "aside").is_symlink()


def test_a_submitted_run_is_not_resumed_on_hosts_that_its_login_node_names(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run", [row(1)])
    job = Submitted(host="login", ssh_config=None, job="7", run_dir="runs/run", log="log")
    job.write(run)
    given = {"options": {"hosts": "h1", "via": f"touch {tmp_path}/touched {{host}}"}, "variables": []}
    (run / "hosts.json").write_text(json.dumps({"hosts": [], "given": given}))
    with pytest.raises(UsageError, match=r"was submitted on login: add --slurm-login login"):
        cli.run(["launch", "--resume", str(run)])
    assert not (tmp_path / "touched").exists()


def test_a_login_node_must_have_the_name_of_a_host(tmp_path: Path) -> None:
    name = "-oProxyCommand=touch x"
    with pytest.raises(UsageError, match="--slurm-login: '-oProxyCommand=touch x' is not a host name for ssh"):
        cli.run(["launch", "cartpole", f"--slurm-login={name}", "--run-dir", str(tmp_path / "run")])
    run = run_directory(tmp_path / "run", [row(1)])
    Submitted(host=name, ssh_config=None, job="7", run_dir="runs/run", log="log").write(run)
    with pytest.raises(UsageError, match=r"submitted\.json: '-oProxyCommand=touch x' is not a host name for ssh"):
        cli.run(["stop", str(run)])


def test_files_on_a_shared_disk_are_not_copied_onto_themselves(stand_in: StandInSlurm, tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run", [row(1)])
    job = Submitted(host="login", ssh_config=None, job="7", run_dir=str(run), log="log")
    job.write(run)
    before = (run / "metrics.jsonl").stat()
    with LoginNode("login", None) as node:
        assert node.fetch(job, run, 0) is None
    after = (run / "metrics.jsonl").stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--slurm"], "--slurm-login implies --slurm"),
        (["--offline"], "--offline requires --sync wheel"),
        (["--sync", "wheel", "--trackers", "wandb"], "--trackers wandb with --sync wheel needs wandb: run .*install"),
        (["-H", "h1"], "--slurm-login cannot be combined with -H"),
        (["--page"], "--slurm-login cannot be combined with --page"),
        (["--sbatch", "'"], "--sbatch .*: no closing quotation"),
        (["--sbatch=--nodes 2 --array=0-3"], "--sbatch '--nodes 2 --array=0-3': a run is a single job: remove the"),
        (["--sbatch=-a0-3"], "--sbatch '-a0-3': a run is a single job: remove the array"),
        (["--workers", "0"], "--workers 0: must be 1 or more"),
    ],
)
def test_bad_usage_is_refused_before_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], sentence: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(extras, "is_installed", lambda module: module != "wandb")
    with pytest.raises(UsageError, match=sentence):
        launch(tmp_path / "run", *options)


@pytest.mark.parametrize("options", [("--run-dir", "run\udcff"), ("--login-dir", "\udcff"), ("--env", "\udcff:A-v0")])
def test_words_that_are_no_text_are_refused_before_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^\$'(run)?\\xff\S* cannot be sent to login: it is not UTF-8 text\.$"):
        cli.run(["launch", "--slurm-login", "login", "cartpole", *options])
    assert list(tmp_path.iterdir()) == []


def test_slurm_does_not_replace_parts_of_the_path_of_the_log() -> None:
    assert submit.sbatch_options("/50%t", "a%j", ["--output=x"])[-4:] == [
        "--job-name=a%j",
        "--chdir=/50%t",
        "--output=x",
        "--output=/50%%t/a%%j.log",
    ]


@pytest.mark.usefixtures("stand_in")
def test_the_environment_on_the_login_node_has_the_packages_of_the_game_and_of_the_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def made(hosts: Sequence[Host], *_: object, extras: tuple[str, ...], offline: bool) -> dict[str, str]:
        asked.append(extras)
        return {host.name: "/envs/python" for host in hosts}

    monkeypatch.setattr(submit, "make_environments", made)
    for trackers in (["tensorboard"], []):
        options = ("--sync", "wheel", "--trackers", *trackers, "--detach")
        assert launch(tmp_path / f"run-{len(trackers)}", *options) == 0
    assert asked == [("tensorboard",), ()]


@pytest.mark.parametrize("option", ["--sbatch=--nodes 4", "--login-dir=work"])
def test_options_of_a_login_node_are_refused_without_one(option: str) -> None:
    with pytest.raises(UsageError, match=r"^--sbatch and --login-dir require --slurm-login\.$"):
        cli.run(["launch", "-H", "h1", "cartpole", option])


def test_a_dry_run_shows_the_job_and_contacts_no_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert launch(tmp_path / "run", "--dry-run", "--sbatch=--nodes 2") == 0
    said = capsys.readouterr().out
    assert said.startswith("on login: sbatch --ntasks-per-node=1 ")
    assert (
        f"exec {sys.executable} -P -m zmqrl launch --slurm --requeue cartpole --updates 60 --run-dir work/runs/run"
        in said
    )


@pytest.fixture
def ssh_config(
    need_programs: Callable[..., None], skip_or_fail: Callable[[str], NoReturn], tmp_path: Path
) -> Iterator[Path]:
    """A configuration of ssh that reaches an SSH server on this machine as host h1."""
    need_programs("sshd", "ssh", "ssh-keygen")
    if os.geteuid() != 0:
        skip_or_fail("an SSH server needs root")
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(key, check=True, timeout=WITHIN_S)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server, client = tmp_path / "sshd_config", tmp_path / "ssh_config"
    server.write_text(SSHD.format(port=port, directory=tmp_path), encoding="utf-8")
    client.write_text(SSH.format(port=port, directory=tmp_path), encoding="utf-8")
    sshd = shutil.which("sshd")
    assert sshd is not None
    with ending(subprocess.Popen([sshd, "-D", "-f", str(server), "-E", str(tmp_path / "sshd.log")])):
        log = tmp_path / "sshd.log"
        eventually(lambda: log.exists() and "listening" in log.read_text(), "the SSH server", WITHIN_S)
        yield client


def test_a_login_node_answers_over_real_ssh_and_sends_changed_files(ssh_config: Path, tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "keys").mkdir(parents=True)
    here.mkdir()
    (there / "config.json").write_text("{}")
    job = Submitted(host="h1", ssh_config=None, job="7", run_dir=str(there), log=str(tmp_path / "run.log"))
    (tmp_path / "run.log").write_text("one\ntwo\n")
    with LoginNode("h1", ssh_config) as node:
        assert node.make_directory(str(tmp_path), "run") == (str(tmp_path), 8)
        assert node.run(["cat"], given="a b'c") == b"a b'c"
        with pytest.raises(ClusterError, match=r"^ls on h1 failed: ls: cannot access '/no such': No such file"):
            node.run(["ls", "/no such"])
        state, _, news = node.look(job, 4)
        assert (state, news) == ("UNKNOWN", b"two\n"), "there is no Slurm"
        now = node.fetch(job, here, 0)
        assert now is not None
        assert {path.name for path in here.iterdir()} == {"config.json"}
        (here / "config.json").unlink()
        os.utime(there / "config.json", (now - 2 * LATE_S, now - 2 * LATE_S))
        (there / "metrics.jsonl").touch()
        assert (node.fetch(job, here, now) or 0) >= now
        assert {path.name for path in here.iterdir()} == {"metrics.jsonl"}
    with pytest.raises(ClusterError, match=r"^nowhere cannot be reached: ssh: "), LoginNode("nowhere", ssh_config):
        pass


def test_a_job_of_a_real_slurm_is_followed_and_stopped(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = StandInSlurm(tmp_path, real_slurm=True)
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{stand_in.bin}:{slurm.environment['PATH']}")
    options = (*OPTIONS, "--sbatch=--nodes 3 --cpus-per-task 2", "cartpole", "--workers", "2", *QUICKLY)
    path = tmp_path / "run"
    with started([sys.executable, "-m", "zmqrl", "launch", *options, "--run-dir", str(path)], path, {}) as following:
        following.wait_to_say("RUNNING")
        following.eventually(lambda: path.joinpath("metrics.jsonl").exists(), "files")
        following.interrupt()
        following.files.assert_summary_exact("interrupted")
        assert "COMPLETED" in following.said() or "FAILED" in following.said()


@pytest.mark.slow
def test_a_real_training_arrives_here(stand_in: StandInSlurm, tmp_path: Path) -> None:
    stand_in.program("""sed 's/launch --slurm --requeue/train/' "$2" > "$2".here && exec bash "$2".here""")
    command = [sys.executable, "-m", "zmqrl", "launch", *OPTIONS, "cartpole", "--updates", "60", *QUICKLY]
    ran([*command, "--run-dir", str(tmp_path / "run")], within_s=WITHIN_S)
    files = RunFiles(tmp_path / "run")
    files.assert_summary_exact("updates")
    files.assert_history_exact(60)
