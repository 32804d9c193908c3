"""The cores that a process can use. The CPU binding of the process and the quota of its control groups limit these
cores. OpenMP does not.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.control_groups import V1, V2, process
from support.paths import TESTS
from support.rig import eventually
from support.run_rig import started

from zmqrl import process as process_module
from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.events import Said, Task
from zmqrl.hosts.link import DAEMON, Link
from zmqrl.process import BINDING, bind_to_core, usable_cores, use_all_cores
from zmqrl.process_id import worker_id

HERE = len(os.sched_getaffinity(0))
BOUND = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores", "KMP_AFFINITY": "granularity=fine,compact"}


@pytest.mark.parametrize(
    ("group", "mount", "files", "cores"),
    [
        ("0::/", V2, {}, HERE),
        ("0::/a/b", V2, {"a/b/cpu.max": "max 100000\n"}, HERE),
        ("0::/a/b", V2, {"a/b/cpu.max": "100000 100000\n"}, 1),
        ("0::/a/b", V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "190000 100000\n"}, 1),
        ("0::/a/b", V2, {"a/b/cpu.max": "5000 100000\n"}, 1),
        ("0::/a/b", V2, {"a/b/cpu.max": f"{HERE + 1}00000 100000\n"}, HERE),
        ("0::/../b", V2, {"cpu.max": "100000 100000\n"}, 1),
        ("4:cpu,cpuacct:/job", V1, {"job/cpu.cfs_quota_us": "-1\n", "job/cpu.cfs_period_us": "100000\n"}, HERE),
        ("4:cpu,cpuacct:/job", V1, {"job/cpu.cfs_quota_us": "50000\n", "job/cpu.cfs_period_us": "50000\n"}, 1),
        ("4:cpuset:/job", V1, {"job/cpu.cfs_quota_us": "50000\n", "job/cpu.cfs_period_us": "50000\n"}, HERE),
        # In a container: the group has the name that the host gives it, and its own directory is mounted.
        ("0::/docker/4f2", V2, {"cpu.max": "100000 100000\n"}, 1),
        ("0::/docker/4f2", V2.replace(" / {}", " /docker/4f2 {}"), {"cpu.max": "100000 100000\n"}, 1),
        ("4:cpu:/docker/4f2", V1, {"cpu.cfs_quota_us": "100000\n", "cpu.cfs_period_us": "100000\n"}, 1),
        ("0::/a", V2, {"a/cpu.max": "no numbers\n"}, HERE),
        ("0::/a", V2, {"a/cpu.max": "100000 0\n"}, HERE),
        # In mountinfo, a blank and a backslash are written as octal numbers. Names of systemd contain backslashes.
        ("0::/a\\x2db/in", V2.replace(" / {}", r" /a\134x2db {}"), {"in/cpu.max": "100000 100000\n"}, 1),
        ("0::/my jobs/in", V2.replace(" / {}", r" /my\040jobs {}"), {"in/cpu.max": "100000 100000\n"}, 1),
    ],
)
def test_the_quota_of_a_control_group_limits_the_cores(
    tmp_path: Path, group: str, mount: str, files: dict[str, str], cores: int
) -> None:
    assert usable_cores(process(tmp_path, group, mount, files)) == cores


def test_the_groups_can_be_mounted_at_a_path_with_a_blank(tmp_path: Path) -> None:
    where = tmp_path / "my groups"
    where.mkdir()
    files = {"cpu.max": "100000 100000\n"}
    process(where, "0::/", V2, files)
    mountinfo = where / "mountinfo"
    mountinfo.write_text(mountinfo.read_text("ascii").replace("my groups", r"my\040groups"), "ascii")
    assert usable_cores(where) == 1


def test_a_kernel_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == HERE


@given(st.lists(st.integers(1_000, 400_000) | st.none(), min_size=1, max_size=4))
def test_the_smallest_quota_of_the_group_and_its_parents_counts(quotas: list[int | None]) -> None:
    with tempfile.TemporaryDirectory() as where:
        path = "/".join(map(str, range(len(quotas))))
        files = {
            f"{'/'.join(map(str, range(depth + 1)))}/cpu.max": f"{'max' if quota is None else quota} 100000\n"
            for depth, quota in enumerate(quotas)
        }
        smallest = min((quota for quota in quotas if quota is not None), default=math.inf)
        expected = max(1, min(HERE, 10**6 if smallest == math.inf else int(smallest) // 100_000))
        assert usable_cores(process(Path(where), f"0::/{path}", V2, files)) == expected


@pytest.fixture
def cores_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the cores that this process may use, and their speeds."""

    def set_cores(speeds: Mapping[int, str], quota: int | None = None) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(speeds))
        monkeypatch.setattr(process_module, "usable_cores", lambda: quota or len(speeds))
        monkeypatch.setattr(process_module, "_speed", lambda core: speeds[core])

    return set_cores


EQUAL = {7: "fast", 2: "fast", 6: "fast", 3: "fast"}


@pytest.mark.parametrize(
    ("index", "count", "speeds", "quota", "core"),
    [
        (0, 4, EQUAL, None, 2),
        (3, 4, EQUAL, None, 7),
        (0, 2, EQUAL, None, None),  # other programs may need the other cores
        (0, 8, EQUAL, None, None),
        (1, 4, EQUAL, 3, None),  # other containers may be bound to the same cores
        (1, 4, EQUAL | {7: "slow"}, None, None),  # all workers would wait for the slow core
    ],
)
def test_a_worker_is_bound_only_if_there_is_an_equal_core_for_each(
    index: int,
    count: int,
    speeds: dict[int, str],
    quota: int | None,
    core: int | None,
    cores_of_a_machine: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = list[tuple[int, set[int]]]()
    cores_of_a_machine(speeds, quota)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: calls.append((pid, set(cores))))
    assert bind_to_core(index, count) == core
    assert calls == ([] if core is None else [(0, {core})])


def test_a_worker_that_may_not_be_bound_works_without(
    cores_of_a_machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, cores: Iterable[int]) -> None:
        raise PermissionError("not allowed here")

    cores_of_a_machine(EQUAL)
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert bind_to_core(0, 4) is None


def cores_of_threads(pid: int | None) -> set[tuple[int, ...]]:
    """The cores that the threads of a process may use."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {tuple(sorted(os.sched_getaffinity(int(task.name)))) for task in tasks}


@pytest.mark.processes
def test_each_thread_of_as_many_workers_as_cores_has_one_core(
    tmp_path: Path, skip_or_fail: Callable[[str], NoReturn]
) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2 or usable_cores() < 2:
        skip_or_fail("two workers can only be bound if this machine has two cores")
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "zmqrl", "train", "cartpole"]
    options = ["--workers", "2", "--updates", "1000000", "--run-dir", str(tmp_path / "run")]
    with started([*command, *options], tmp_path / "run", {}) as run:
        run.wait_for(2)
        of_workers = [cores_of_threads(run.pid("worker", rank)) for rank in range(2)]
        of_shard = cores_of_threads(run.pid("shard", 0))
        run.interrupt()
    assert of_workers == [{(core,)} for core in cores]
    assert of_shard == {tuple(cores)}


def test_variables_that_bind_threads_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    serial = ("OMP_MAX_ACTIVE_LEVELS", "KMP_LIBRARY")
    for name in (*BINDING, *serial, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    use_all_cores()
    assert not {*BINDING, *serial} & set(os.environ)
    assert os.environ["OMP_NUM_THREADS"] == "1"


# Prints how many levels of parallel regions may have several threads.
COUNTS_LEVELS = """
import ctypes
from zmqrl.process import use_all_cores

use_all_cores()
import torch

print(ctypes.CDLL(None).omp_get_max_active_levels())
"""


@pytest.mark.processes
def test_openmp_keeps_the_threads_of_parallel_regions() -> None:
    command = [sys.executable, "-c", COUNTS_LEVELS]
    variables = os.environ | {"OMP_MAX_ACTIVE_LEVELS": "0"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=180, check=True)
    assert int(done.stdout) > 0


@pytest.mark.processes
def test_openmp_does_not_take_cores_from_a_command() -> None:
    """When torch is imported, OpenMP would bind the main thread to the first core."""
    command = [sys.executable, "-m", "zmqrl", "eval", str(TESTS / "old_run"), "--episodes", "1", "--json"]
    done = subprocess.run(command, env=os.environ | BOUND, capture_output=True, text=True, timeout=180, check=True)
    assert json.loads(done.stdout)["provenance"]["cores"] == usable_cores()


TELLS_ITS_VARIABLES = """
import os, signal
from zmqrl.process import BINDING, read_job, say

read_job(signal.SIGKILL)
say({name: os.environ[name] for name in BINDING if name in os.environ})
"""


@pytest.mark.processes
@pytest.mark.parametrize("asked", [{}, {"OMP_PROC_BIND": "close"}])
def test_processes_on_a_host_are_bound_only_if_the_user_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str]
) -> None:
    (tmp_path / "tells.py").write_text(TELLS_ITS_VARIABLES, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    for name, value in BOUND.items():
        monkeypatch.setenv(name, value)
    link = Link("h1", [sys.executable, *DAEMON], work=str(tmp_path / "work"), lease_s=None, environment=asked)
    said: list[Any] = []
    with contextlib.closing(DaemonLauncher({"h1": link}, lambda _: "h1")) as launcher:
        task = Task(process=worker_id(0), module="tells", job={}, log_path=tmp_path / "log", threads=1)
        launcher.start(task)

        def heard() -> bool:
            said.extend(event.facts for event in launcher.poll() if isinstance(event, Said))
            return bool(said)

        eventually(heard, "the first message of the process", 60)
    assert said == [asked]
