"""The measurement of recovery times: which versions count, and which results are kept."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, cast

import bench_lab
import pytest
import recovery
from support.rig import ending

from zmqrl.commands.run.launch import directory_name
from zmqrl.hostd.files import open_directory
from zmqrl.ps.shard.store import SlotStore
from zmqrl.rundir import RunDirectory


def write_histories(path: Path, *versions: recovery.Made) -> None:
    """Write a history with these versions for each shard."""
    (path / "history").mkdir(exist_ok=True)
    lines = [json.dumps({"generation": generation, "version": version}) for generation, version in versions]
    for shard in range(recovery.SHARDS):
        (path / f"history/shard-{shard}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> recovery.Run:
    """A run without a process and without histories."""
    return recovery.Run(cast("subprocess.Popen[bytes]", None), tmp_path, tmp_path)


def test_a_recovery_takes_until_two_versions_of_the_newest_generation(
    run: recovery.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "WITHIN_S", 0.0)
    for newer, is_over in (
        ([(0, 9), (0, 10)], False),
        ([(0, 9), (0, 10), (0, 11)], False),
        ([(0, 9), (0, 10), (0, 11), (0, 12)], True),
        ([(0, 8), (1, 9)], False),
        ([(0, 8), (1, 9), (1, 10)], True),
        ([(1, 13)], False),
    ):
        write_histories(run.path, *newer)
        with contextlib.nullcontext() if is_over else pytest.raises(RuntimeError, match="two more versions"):
            run.recovered_s(0.0, (0, 10))


def test_a_worker_that_contributed_only_before_the_failure_has_not_recovered(
    run: recovery.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "WITHIN_S", 0.0)
    made = iter([(0, 50), (0, 50), (0, 100)])
    monkeypatch.setattr(recovery.Run, "made", lambda self: next(made))
    (run.path / "cluster.json").write_text(json.dumps({"workers": [{"rank": 0}, {"rank": 1}]}), encoding="utf-8")
    (run.path / "history").mkdir()
    lines = [json.dumps({"version": version, "ranks": [0, 1] if version <= 50 else [0]}) for version in range(1, 101)]
    (run.path / "history/shard-0.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="all workers"):
        run.settle()


class Clock:
    """A clock that stands still until a failure is caused."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


CAUSES: dict[str, tuple[Callable[[bench_lab.Lab], Callable[[recovery.Run], float]], float, float]] = {
    "all processes on a host are killed": (recovery.kill_all_on_host, 103.0, 106.0),  # 3 s to list them
    "a host is cut off": (recovery.cut_off_for_good, 100.0, 103.0),
    "a host is repaired": (recovery.cut_off, 123.0, 123.0),
    "a disk has space again": (lambda where: recovery.fill_disk, 110.0, 110.0),
    "a state is damaged": (lambda where: recovery.damage_state, 100.0, 0.0),
}
"""What causes or repairs a failure, when the clock starts, and when the versions before the recovery are read."""


@pytest.mark.parametrize("name", CAUSES)
def test_the_time_that_a_failure_or_a_repair_takes_counts(
    name: str, run: recovery.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, counted = Clock(), list[tuple[float, recovery.Made]]()

    def cause(*_: object) -> str:
        """Cause or repair a failure, which takes 3 s. Returns the processes on a host."""
        clock.now += 3.0
        return "[]"

    def full_disk(*_: object, **options: int) -> NoReturn:
        raise OSError

    def recovered_s(run: recovery.Run, since: float, before: recovery.Made) -> float:
        counted.append((since, before))
        return 0.0

    monkeypatch.setattr(recovery, "time", clock)
    monkeypatch.setattr(os, "kill", cause)
    monkeypatch.setattr(recovery, "damage_newest", lambda path: None)
    monkeypatch.setattr(Path, "open", full_disk)
    monkeypatch.setattr(Path, "unlink", cause)
    monkeypatch.setattr(recovery.Run, "pid", lambda run, name: 1)
    monkeypatch.setattr(recovery.Run, "made", lambda run: (0, clock.now))
    monkeypatch.setattr(recovery.Run, "recovered_s", recovered_s)
    failure, since, before = CAUSES[name]
    failure(cast(bench_lab.Lab, cause))(run)
    monkeypatch.undo()
    generation = 1 if name == "a state is damaged" else 0  # only versions after the return to a checkpoint count
    assert counted == [(since, (generation, before))]


@pytest.mark.processes
def test_a_killed_supervisor_is_gone_only_when_its_last_process_is_gone(tmp_path: Path) -> None:
    last = tmp_path / "last"
    supervisor = f"sh -c 'sleep 1 & echo $! > {last}; wait' & wait"
    with ending(subprocess.Popen(["sh", "-c", supervisor])) as process:
        recovery.wait_until(lambda: last.exists() and last.read_text(), "the last process")
        took_s = recovery.killed_with_all(process)
    assert not recovery.is_alive(int(last.read_text()))
    assert took_s > 0.0


def test_the_versions_of_a_run_on_hosts_are_those_in_the_files_of_its_shards(run: recovery.Run) -> None:
    host = socket.gethostname()
    place, lock = open_directory(directory_name(RunDirectory(run.path), host))
    try:
        write_histories(run.path, (0, 1))  # an old copy
        write_histories(place, (0, 1), (0, 2))
        on_host = recovery.Run(run.process, run.path, bench_lab.directory_on(host, run.path))
        assert on_host.made() == (0, 2)
    finally:
        os.close(lock)
        shutil.rmtree(place)


@pytest.mark.parametrize("option", ["--output", "--page"])
def test_results_of_code_without_a_commit_are_refused(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_lab, "provenance", lambda: {"commit": "0123456789ab+"})
    monkeypatch.setattr(bench_lab, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["recovery.py", option, str(tmp_path / "results")])
    with pytest.raises(SystemExit):
        recovery.main()
    assert "the code has changes that no commit has" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_the_table_has_the_median_and_the_longest_time_of_each_case() -> None:
    assert recovery.table({"a shard is killed": [0.25, 1.0, 0.5]}).splitlines() == [
        "| what happens | median | longest | runs |",
        "|---|---|---|---|",
        "| a shard is killed | 0.5 s | 1.0 s | 3 |",
    ]


def test_the_damage_affects_only_the_newest_version_of_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "shard-0.slots"
    made = SlotStore.create(path, identity=b"run", count=10, state_names=["m"])
    for version in range(1, 8):
        made.commit(made.free_slot(), generation=1, version=version, record=b"", crc32=0)
    made.free_slot()  # the shard was stopped while it wrote version 8
    made.close()
    recovery.damage_newest(path)
    left = SlotStore.open(path, identity=b"run", count=10, state_names=["m"])
    assert left is not None
    assert left.newest is not None
    assert left.newest.version == 6
