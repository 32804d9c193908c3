"""A daemon kills the programs that the processes of a run have left, and nothing else. Pure: stand-ins replace the
system calls.
"""

import os
from types import SimpleNamespace

import pytest

from zmqrl.hostd import orphans
from zmqrl.hostd.orphans import DEATH_IS_SEEN_WITHIN_S, Orphans


class System:
    """The children of the daemon, with their marks. The children in ``stubborn`` cannot be killed."""

    def __init__(self) -> None:
        self.now = 100.0
        self.marks: dict[int, str] = {}
        self.stubborn: set[int] = set()

    def kill(self, pid: int, _: int) -> None:
        if pid not in self.stubborn:
            del self.marks[pid]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    system = System()
    monkeypatch.setattr(orphans, "children", lambda pid: list(system.marks))
    monkeypatch.setattr(orphans, "mark_of", lambda pid: system.marks[pid])
    monkeypatch.setattr(orphans, "time", SimpleNamespace(monotonic=lambda: system.now))
    fake = SimpleNamespace(kill=system.kill, waitpid=lambda pid, options: (0, 0), getpid=os.getpid, WNOHANG=os.WNOHANG)
    monkeypatch.setattr(orphans, "os", fake)
    return system


def test_only_the_orphans_of_a_dead_process_are_killed(system: System) -> None:
    watch, living = Orphans(), {2: "b"}
    system.marks = {2: "b", 10: "a", 11: "b", 12: ""}
    watch.died("a", living)
    system.now += 0.25
    system.marks[13] = ""  # it appears a moment after the death
    watch.step(living)
    assert system.marks == {2: "b", 11: "b"}


def test_an_orphan_without_an_environment_outlives_its_process_if_it_appeared_long_before(system: System) -> None:
    watch, living = Orphans(), {1: "a", 2: "b"}
    system.marks = {1: "a", 2: "b", 10: ""}  # a server that nothing connects with process 1
    watch.step(living)
    system.now += DEATH_IS_SEEN_WITHIN_S
    del living[1], system.marks[1]
    watch.died("a", living)
    watch.step(living)
    assert system.marks == {2: "b", 10: ""}


def test_an_orphan_that_cannot_be_killed_does_not_endanger_later_orphans(system: System) -> None:
    watch, living = Orphans(), {2: "b"}
    system.marks, system.stubborn = {2: "b", 10: "a"}, {10}
    watch.died("a", living)
    system.now += DEATH_IS_SEEN_WITHIN_S
    watch.step(living)
    system.marks[20] = ""  # a server of the process that is still alive
    watch.step(living)
    assert system.marks == {2: "b", 10: "a", 20: ""}
