"""Processes start with and without the fork server, and no process depends on it. Real daemons on this machine.

``tests/hosts/test_launchers.py`` tests the life cycle of forked processes.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.rig import WITHIN_S, eventually, is_alive
from support.watched import Place, Watched

from zmqrl.hostd.guard import children
from zmqrl.hostd.orphans import mark_of
from zmqrl.process_id import ProcessId, worker_id

ONE, TWO, THREE = map(worker_id, range(3))
pytestmark = pytest.mark.processes


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    place = Place()
    place.forked = True
    watched = Watched(place, tmp_path)
    yield watched
    watched.launcher.close()


def daemon_of(watched: Watched) -> int:
    (link,) = watched.launcher.links.values()
    eventually(lambda: watched.launcher.poll() is not None and link.up is not None, "the daemon is up", WITHIN_S)
    assert link.up is not None
    return link.up.pid


def command_of(pid: int) -> list[str]:
    """The module and the arguments of a process of the daemon. Empty if the process has just begun or ended."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
        return text.rstrip("\0").partition("zmqrl.hostd.child\0")[2].split("\0")
    return []


def fork_servers(watched: Watched) -> list[int]:
    return [pid for pid in children(daemon_of(watched)) if "zmqrl.hostd.fork_server" in command_of(pid)]


def fork_server(watched: Watched) -> int:
    (pid,) = fork_servers(watched)
    return pid


def open_files(*pids: int) -> list[int]:
    return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids]


def up(watched: Watched, *processes: ProcessId, **job: Any) -> list[dict[str, Any]]:
    for process in processes:
        watched.start(process, **job)
    return watched.up(*processes)


def test_forked_processes_look_as_if_the_daemon_had_started_them(watched: Watched) -> None:
    facts = up(watched, ONE, TWO)
    assert [each["is_forked"] for each in facts] == [True, True]
    pids = [each["pid"] for each in facts]
    daemon, server = daemon_of(watched), fork_server(watched)
    assert sorted(children(daemon)) == sorted([server, *pids])
    assert children(server) == []
    assert [command_of(pid) for pid in pids] == [["support.a_child"], ["support.a_child"]]
    assert [os.getsid(pid) for pid in pids] == pids
    assert len({mark_of(pid) for pid in [*pids, server]}) == 3
    assert len({each["random"] for each in facts}) == 2
    assert [Path(each["argv"][0]).name for each in facts] == ["a_child.py", "a_child.py"]
    assert [each["argv"][1:] for each in facts] == [[], []]
    watched.place.forked = False
    (alone,) = up(watched, THREE)
    assert not alone["is_forked"]
    assert len(set(open_files(*pids, alone["pid"]))) == 1


def test_another_module_is_forked_from_the_same_fork_server(watched: Watched) -> None:
    up(watched, ONE)
    watched.start(TWO, module="support.a_threaded_import")
    (facts,) = watched.up(TWO)
    assert facts["is_forked"]
    assert command_of(facts["pid"]) == ["support.a_threaded_import"]


def test_what_a_process_has_forked_ends_with_it_even_without_a_new_program(watched: Watched) -> None:
    one, other = up(watched, ONE, TWO, forks=True)
    watched.place.kill(one["pid"])
    watched.end(ONE)
    eventually(lambda: not is_alive(one["started"][0]), "the fork ends", WITHIN_S)
    assert all(map(is_alive, [other["pid"], *other["started"]]))


def test_a_prepared_host_has_a_fork_server_before_its_first_process(watched: Watched) -> None:
    watched.launcher.prepare(ONE, "support.a_child", 1)
    eventually(lambda: bool(fork_servers(watched)), "the fork server", WITHIN_S)
    server = fork_server(watched)
    assert [each["is_forked"] for each in up(watched, ONE, TWO)] == [True, True]
    assert fork_server(watched) == server


def test_the_log_of_the_first_process_has_the_output_of_the_imports(watched: Watched) -> None:
    watched.launcher.prepare(ONE, "support.a_failing_import", 1)
    daemon = daemon_of(watched)
    eventually(lambda: children(daemon) == [], "the fork server has failed", WITHIN_S)
    up(watched, ONE)
    assert watched.log(ONE).splitlines()[-1] == "RuntimeError: this module cannot be imported"


@pytest.mark.parametrize("module", ["support.a_threaded_import", "support.a_failing_import"])
def test_a_module_that_cannot_be_forked_starts_alone(watched: Watched, module: str) -> None:
    for process in (ONE, TWO):
        watched.start(process, module=module)
    assert [each["is_forked"] for each in watched.up(ONE, TWO)] == [False, False]
    assert fork_servers(watched) == []
    assert "Traceback" in watched.log(ONE) or "has started threads" in watched.log(ONE)
    assert watched.log(TWO) == ""


def test_a_process_with_another_environment_starts_alone(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    up(watched, ONE)
    (link,) = watched.launcher.links.values()
    link.environment["OMP_NUM_THREADS"] = "3"
    (facts,) = up(watched, TWO)
    assert not facts["is_forked"]
    del link.environment["OMP_NUM_THREADS"]
    (facts,) = up(watched, THREE)
    assert facts["is_forked"]


def test_an_environment_that_is_too_large_to_send_starts_alone(watched: Watched) -> None:
    (link,) = watched.launcher.links.values()
    link.environment |= {f"LARGE_{number}": "x" * 100_000 for number in range(8)}
    (facts,) = up(watched, ONE)
    assert not facts["is_forked"]


def test_a_killed_fork_server_ends_no_process_and_later_processes_start_alone(watched: Watched) -> None:
    (one,) = up(watched, ONE)
    os.kill(fork_server(watched), signal.SIGKILL)
    (two,) = up(watched, TWO)
    assert fork_servers(watched) == []
    assert (one["is_forked"], two["is_forked"]) == (True, False)
    assert all(map(is_alive, [one["pid"], two["pid"]]))
    assert watched.ends(ONE) == []


def test_processes_that_wait_for_a_fork_server_start_alone_if_it_is_killed(watched: Watched) -> None:
    for process in (ONE, TWO):
        watched.start(process, module="support.a_slow_import")
    eventually(lambda: bool(fork_servers(watched)), "the fork server", WITHIN_S)
    os.kill(fork_server(watched), signal.SIGKILL)
    assert [each["is_forked"] for each in watched.up(ONE, TWO)] == [False, False]


@pytest.mark.slow
def test_processes_start_alone_if_the_fork_server_is_stopped(watched: Watched) -> None:
    (one,) = up(watched, ONE)
    server = fork_server(watched)
    os.kill(server, signal.SIGSTOP)
    two, three = up(watched, TWO, THREE)
    assert not two["is_forked"]
    assert not three["is_forked"]
    assert not is_alive(server)
    assert is_alive(one["pid"])


def test_a_process_can_be_stopped_while_it_waits_for_the_fork_server(watched: Watched) -> None:
    watched.start(ONE, module="support.a_hanging_import")
    watched.start(TWO, module="support.a_hanging_import")
    eventually(lambda: bool(fork_servers(watched)), "the fork server", WITHIN_S)
    watched.launcher.signal(ONE, signal.SIGKILL)
    assert watched.end(ONE).how() == "killed by SIGKILL"
    watched.launcher.stop([TWO], grace_s=0.1)
    assert watched.launcher.running() == []
    watched.launcher.close()


def test_a_fork_server_leaves_nothing_behind_when_its_daemon_is_killed(watched: Watched) -> None:
    (one,) = up(watched, ONE)
    watched.start(TWO)
    pids = [fork_server(watched), one["pid"]]
    os.kill(daemon_of(watched), signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, pids)), "the end of all", WITHIN_S)


def test_many_processes_start_at_once_and_leave_nothing(watched: Watched) -> None:
    processes = [worker_id(rank) for rank in range(50)]
    up(watched, ONE)
    daemon, server = daemon_of(watched), fork_server(watched)
    before = open_files(daemon, server)
    facts = up(watched, *processes[1:])
    assert all(each["is_forked"] for each in facts)
    for each in facts[::2]:
        os.kill(each["pid"], signal.SIGKILL)
    watched.launcher.stop(processes[1:], grace_s=0.0)
    assert watched.launcher.running() == [ONE]
    eventually(lambda: len(children(daemon)) == 2, "no zombie is left", WITHIN_S)
    assert children(server) == []
    assert open_files(daemon, server) == before
