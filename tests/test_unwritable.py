"""Unwritable files and directories cause one sentence with the path and the remedy, never a traceback."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from support.commands import ran
from support.policy_rig import BREAKOUT, write_run
from support.record_rig import row
from support.run_rig import WITHIN_S, Run, RunFiles, trained, training

from zmqrl import cli
from zmqrl.commands.inspect.living import exit_status_of
from zmqrl.commands.inspect.status import status
from zmqrl.recipes import cartpole
from zmqrl.rundir import RunDirectory

pytestmark = pytest.mark.processes

SLOWLY = ("--straggle", "0:0.02", "--straggle", "1:0.02")


@pytest.fixture
def immutable(skip_or_fail: Callable[[str], NoReturn]) -> Iterator[Callable[[Path], None]]:
    """Make a file or directory immutable, even for root, until the test ends."""
    changed: list[Path] = []

    def chattr(flag: str, path: Path) -> bool:
        return subprocess.run(["chattr", flag, str(path)], capture_output=True, timeout=180).returncode == 0

    def make(path: Path) -> None:
        changed.append(path)
        if os.geteuid() != 0 or not chattr("+i", path):
            skip_or_fail("files cannot be made immutable here: that needs root and a file system such as ext4")

    yield make
    for path in changed:
        chattr("-i", path)


@contextlib.contextmanager
def mounted(path: Path, options: str, skip_or_fail: Callable[[str], NoReturn]) -> Iterator[None]:
    """Mount a separate disk at ``path``."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, timeout=180).returncode:
        skip_or_fail("nothing can be mounted here: that needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=180)


class Refused:
    """Runs command lines in this process and checks that each is refused in one sentence."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> str:
        self.monkeypatch.setattr(sys, "argv", ["zmqrl", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = self.capsys.readouterr()
        assert stop.value.code == 2, said
        assert re.fullmatch(r"zmqrl: .+\.\n", said.err), said.err
        assert "Error" not in said.err
        return said.err


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(monkeypatch, capsys)


# before a run


OF_SHARDS = ("checkpoints", "history", "state", "history/shard-0.jsonl", "state/shard-1.slots")
OF_THE_RUN = ("config.json", "metrics.jsonl", "logs", "logs/supervisor.log", "logs/shard-0.log")


@pytest.mark.parametrize("name", [".", "cluster.json", *OF_SHARDS, *OF_THE_RUN])
def test_an_immutable_path_is_named_before_a_run_resumes(
    refused: Refused, immutable: Callable[[Path], None], tmp_path: Path, name: str
) -> None:
    run = write_run(tmp_path / "run", cartpole(), 40)
    for directory in ("history", "state", "logs"):
        (run / directory).mkdir()
    if name not in OF_THE_RUN:
        (run / "cluster.json").touch()  # from a killed run
    place = run / name
    place.touch()
    immutable(place)
    said = refused("train", "--resume", "--run-dir", str(run))
    kept = [run / "cluster.json", run / "left.json"]
    assert name in OF_THE_RUN or any(path.exists() for path in kept), "the facts about a killed run are gone"
    assert f"cannot write {run / name if name != '.' else run}" in said
    assert "Operation not permitted: make it writable, or choose another --run-dir." in said


FRESH_FILES = ("metrics.jsonl", "evaluations.jsonl", "summary.json", "trace.json", "logs/supervisor.log")


@pytest.mark.parametrize("name", [*FRESH_FILES, "logs/shard-0.log", "history/shard-0.jsonl", "state/shard-1.slots"])
def test_a_directory_in_place_of_a_file_is_named_before_a_run(refused: Refused, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    (run / name).mkdir(parents=True)
    said = refused("train", "cartpole", "--evaluator", "--run-dir", str(run))
    what_to_do = "move the directory of that name out of the way, or choose another --run-dir."
    assert said == f"zmqrl: cannot write {run / name}: Is a directory: {what_to_do}\n"


@pytest.mark.parametrize("name", ["checkpoints", "logs", "history", "state", "sockets"])
def test_a_file_in_place_of_a_directory_is_named_before_a_run(refused: Refused, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / name).touch()
    said = refused("train", "cartpole", "--run-dir", str(run))
    assert f"cannot write {run / name}: " in said
    assert said.endswith(", or choose another --run-dir.\n")


def test_an_error_names_a_run_directory_that_cannot_be_created(
    refused: Refused, immutable: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    immutable(tmp_path / "runs")
    assert f"cannot write {tmp_path}/runs/first: Operation not permitted: make it writable, or " in refused(
        "train", "cartpole", "--run-dir", str(tmp_path / "runs" / "first")
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("size=5m", "the disk of {} has 5.2 MB left, but this run needs "),
        ("ro", "cannot write {}: Read-only file system: make it writable, or choose another"),
    ],
)
def test_a_disk_without_room_for_a_run_is_named_before_the_run_and_nothing_is_left(
    refused: Refused, skip_or_fail: Callable[[str], NoReturn], tmp_path: Path, options: str, reason: str
) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, options, skip_or_fail):
        said = refused("train", "cartpole", "--run-dir", str(disk / "run"))
        assert reason.format(disk / "run") in said
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("arguments", ["train cartpole", "eval run", "launch -H h1 cartpole", "status run", "trian"])
def test_a_limit_of_too_few_open_files_is_reported(arguments: str) -> None:
    """The check comes before imports that need more open files."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))

    command = [sys.executable, "-m", "zmqrl", *arguments.split()]
    done = ran(command, status=2, within_s=WITHIN_S, preexec_fn=limit)
    said = "zmqrl: only 16 open files are allowed: raise the limit (ulimit -n) to at least 256.\n"
    assert (done.stdout, done.stderr) == ("", said)


def test_a_soft_limit_of_open_files_is_raised_if_allowed(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    command = [sys.executable, "-m", "zmqrl", "status", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, preexec_fn=limit)
    assert "is not a run directory" in done.stderr


def test_a_run_with_more_connections_than_open_files_is_refused(refused: Refused, tmp_path: Path) -> None:
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("zmqrl.cli.raise_open_files", lambda: None)
            said = refused("train", "cartpole", "--workers", "100", "--run-dir", str(tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert said == "zmqrl: only 300 open files are allowed: raise the limit (ulimit -n) to at least 472.\n"
    assert not (tmp_path / "run").exists()


# during a run


@contextlib.contextmanager
def running(path: Path, *options: str) -> Iterator[Run]:
    with training(path, *SLOWLY, *options) as run:
        run.wait_for(5)
        yield run


def ended(run: Run, *names: str) -> str:
    """Wait for a run that cannot write. Returns the one sentence that it ends with."""
    assert run.wait() == 3, run.said()
    assert re.fullmatch(r"zmqrl: .+\.\n", run.complaint()), run.complaint()
    assert "Traceback" not in run.said()
    for name in names:
        assert name in run.complaint()
    return run.complaint()


@pytest.mark.slow
def test_a_last_checkpoint_that_cannot_be_written_ends_the_run_at_once_and_nothing_is_lost(
    immutable: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with running(path) as run:
        immutable(path / "checkpoints")
        run.signal(signal.SIGTERM)
        ended(run, f"cannot write {path}/checkpoints: Operation not permitted: make it writable.")
        version = run.files.version()
        assert (path / "left.json").exists(), "the state of the shards cannot be found"
    subprocess.run(["chattr", "-i", str(path / "checkpoints")], check=True, timeout=180)
    files = trained(path, "--resume", "--updates", str(version + 5))
    assert f"resuming from version {version}" in (tmp_path / "run.stdout").read_text()
    files.assert_history_exact(version + 5)


@pytest.mark.slow
def test_a_summary_that_cannot_be_written_is_reported_and_the_last_checkpoint_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with running(path) as run:
        (path / "summary.json").mkdir()
        run.signal(signal.SIGTERM)
        ended(run, f"cannot write {path}/summary.json: Is a directory: move the directory of that name out of the way.")
        assert run.files.newest().version == run.files.version()


@pytest.mark.slow
def test_a_log_that_cannot_be_opened_ends_the_run_with_a_checkpoint(
    immutable: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with running(path) as run:
        immutable(path / "logs" / "worker-0.log")
        run.kill("worker", 0)
        ended(run, f"cannot write {path}/logs/worker-0.log: Operation not permitted: make it writable.")
        assert "Traceback" in run.files.log("supervisor")
        assert run.files.newest().version == run.files.version()


def fill(disk: Path) -> Path:
    """Fill a disk with one file."""
    filling = disk / "filling"
    with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filling


@pytest.mark.slow
def test_a_run_waits_for_space_on_a_full_disk_and_goes_on(
    skip_or_fail: Callable[[str], NoReturn], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=32m", skip_or_fail), running(disk) as run:
        filling = fill(disk)
        run.wait_to_say("has a full disk; the run waits 300 s for space")
        filling.unlink()
        run.wait_for(run.files.version() + 5)
        run.interrupt(signal.SIGTERM)
        run.files.assert_history_exact(run.files.assert_summary_exact("interrupted")["updates"])
        assert "Traceback" not in run.said()


@pytest.mark.slow
def test_an_interrupt_on_a_full_disk_ends_the_run_with_the_first_error_and_nothing_is_lost(
    skip_or_fail: Callable[[str], NoReturn], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=32m", skip_or_fail):
        with running(disk) as run:
            filling = fill(disk)
            run.wait_to_say("has a full disk; the run waits 300 s for space")
            run.signal(signal.SIGTERM)
            assert run.wait() == 3
            first, second, *log = run.complaint().splitlines()
            full = r"the disk of shard-\d is full|the disks of shard-\d and shard-\d are full"
            sentence = rf"zmqrl: cannot write a checkpoint: ({full}): free some space, then use --resume\."
            assert re.fullmatch(sentence, first)
            assert second.startswith("The first to fail was shard-")
            assert log[-1].endswith(".jsonl: the disk is full.")
            assert "Traceback" not in run.said()
            assert len(run.said().splitlines()) < 40
            version = run.files.version()
        found = run.files.summary()
        assert (found["exit_reason"], found["exit_status"]) == ("failed", 3), "the disk is full, but has its summary"
        assert status(disk)["state"] == "ended"
        assert exit_status_of(RunDirectory(disk)) == 3
        filling.unlink()
        trained(disk, "--resume", "--updates", str(version + 5)).assert_history_exact(version + 5)


@pytest.mark.slow
def test_an_error_in_a_thread_of_a_tracker_is_logged_and_the_run_continues(
    skip_or_fail: Callable[[str], NoReturn], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    path.mkdir()
    with mounted(path / "tensorboard", "size=4k", skip_or_fail):
        (path / "tensorboard" / "filling").write_bytes(bytes(4096))
        with training(path, "--updates", "100") as run:
            assert run.wait() == 0, run.said()
        assert "the run continues without tensorboard: [Errno 28] No space left on device" in run.said()
        assert run.complaint() == ""
        assert "Traceback" in run.files.log("supervisor")


# output of other commands


@pytest.mark.parametrize(
    ("command", "name"), [("record --seconds 2", "a.mp4"), ("record --seconds 2", "a.gif"), ("plot", "a.pdf")]
)
def test_a_plot_on_a_full_disk_is_refused_and_not_kept(
    refused: Refused, skip_or_fail: Callable[[str], NoReturn], tmp_path: Path, command: str, name: str
) -> None:
    run, disk = write_run(tmp_path / "run", BREAKOUT, 0), tmp_path / "disk"
    (run / "metrics.jsonl").write_text(json.dumps(row(1)) + "\n")
    with mounted(disk, "size=8k", skip_or_fail):
        said = refused(*command.split(), str(run), "--output", str(disk / name))
        reason = "No space left on device: free some space on that disk"
        assert said.startswith(f"zmqrl: cannot write {disk}/{name}: {reason}")
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    ["record {run} --output {place}/a.mp4", "record {run} --output {place}/a.gif", "plot {run} --output {place}/a.png"],
)
def test_an_error_names_an_unwritable_output(
    refused: Refused, immutable: Callable[[Path], None], tmp_path: Path, command: str
) -> None:
    run, place = write_run(tmp_path / "run", BREAKOUT, 0), tmp_path / "place"
    (run / "metrics.jsonl").write_text(json.dumps(row(1)) + "\n")
    place.mkdir()
    immutable(place)
    said = refused(*command.format(run=run, place=place).split())
    assert f"cannot write {place}/a." in said
    assert "Operation not permitted" in said


@pytest.mark.parametrize(
    "arguments",
    [
        "--version",
        "--help",
        pytest.param("train --help", marks=pytest.mark.slow),
        pytest.param("eval {run} --episodes 1", marks=pytest.mark.slow),
        "status {run}",
    ],
)
def test_unwritable_standard_output_is_reported_in_one_sentence(tmp_path: Path, arguments: str) -> None:
    run = write_run(tmp_path / "run", cartpole(), 0)
    command = [sys.executable, "-m", "zmqrl", *arguments.format(run=run).split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=WITHIN_S)
    said = "zmqrl: cannot write standard output: No space left on device: free some space on that disk.\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_unwritable_standard_output_without_a_buffer_is_reported_in_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-u", "-m", "zmqrl", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=WITHIN_S,
        )
    said = "zmqrl: cannot write standard output: No space left on device: free some space on that disk.\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.parametrize("arguments", ["--version", "trian", "status {run}"])
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_command_with_closed_standard_streams_ends_normally(
    tmp_path: Path, arguments: str, closed: tuple[int, ...]
) -> None:
    run = write_run(tmp_path / "run", cartpole(), 0)
    command = [sys.executable, "-m", "zmqrl", *arguments.format(run=run).split()]

    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    done = ran(command, status=2 if arguments == "trian" else 0, within_s=WITHIN_S, preexec_fn=close)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("closed", [(1, 2), (0, 1, 2)])
def test_a_run_with_closed_or_full_output_ends_normally(tmp_path: Path, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    options = ["train", "cartpole", "--updates", "20", "--ppo.rollout-steps", "32", "--run-dir", str(tmp_path / "run")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "zmqrl", *options], stdout=full, stderr=full, timeout=WITHIN_S, preexec_fn=close
        )
    assert done.returncode == 0
    RunFiles(tmp_path / "run").assert_summary_exact("updates")


def test_a_command_in_a_removed_directory_gets_a_clear_error(tmp_path: Path) -> None:
    program = f"import os, runpy; os.rmdir({str(tmp_path)!r}); runpy.run_module('zmqrl', run_name='__main__')"
    done = ran([sys.executable, "-c", program], status=2, within_s=WITHIN_S, cwd=tmp_path)
    assert done.stderr == "zmqrl: the current directory was removed: change to another directory.\n"
