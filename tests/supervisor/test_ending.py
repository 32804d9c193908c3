"""Shards end at their last version, even if they answer late and keep making versions."""

import contextlib
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.messages import stats_with

from zmqrl.errors import ClusterError, FullDiskError, UnwritableError, UsageError
from zmqrl.ps.wire import messages as m
from zmqrl.rundir import RunDirectory, write_json
from zmqrl.supervisor import ending
from zmqrl.supervisor import supervisor as supervisor_module
from zmqrl.supervisor.ending import correcting, stop_shards
from zmqrl.supervisor.supervisor import Supervisor


class LateControl:
    """Shards that make ``pace`` versions between two requests. Each answer is out of date by ``late`` requests.

    The shard ``failed`` can make no more versions, so the other shards can make at most one more version.
    """

    run = "0" * 16

    def __init__(self, *versions: int, pace: int, late: int, failed: int | None = None) -> None:
        self.versions = list(versions)
        self.stops: dict[int, int] = {}
        self.pace, self.failed = pace, failed
        self.answers: list[dict[int, m.Stats]] = [self._stats() for _ in range(late + 1)]

    def stats(
        self, shards: Iterable[int], *, within_s: float, what: str, meanwhile: Callable[[], None]
    ) -> dict[int, m.Stats]:
        meanwhile()
        return self._answer(shards)

    def ask(
        self,
        shards: Iterable[int],
        question: Callable[[int], m.Message],
        answer: Callable[[m.Message], Any],
        *,
        within_s: float,
        what: str,
        meanwhile: Callable[[], None],
    ) -> dict[int, m.Stats]:
        meanwhile()
        for shard in shards:
            stop = question(shard)
            assert isinstance(stop, m.Stop)
            if shard != self.failed and stop.version is not None and stop.version >= self.versions[shard]:
                self.stops[shard] = stop.version
        return self._answer(shards)

    def _answer(self, shards: Iterable[int]) -> dict[int, m.Stats]:
        self.versions = [min(v + self.pace, self.stops.get(shard, 10**9)) for shard, v in enumerate(self.versions)]
        self.answers.append(self._stats())
        old = self.answers.pop(0)
        return {shard: old[shard] for shard in shards}

    def _stats(self) -> dict[int, m.Stats]:
        return {
            shard: stats_with(
                run=self.run,
                shard=shard,
                version=version,
                state="ended" if version == self.stops.get(shard) or shard == self.failed else "open",
                totals=(version, 0, 0, 0),
                stop=version if shard == self.failed else self.stops.get(shard),
                failure="version 101 has numbers that are not finite" if shard == self.failed else "",
            )
            for shard, version in enumerate(self.versions)
        }


@pytest.mark.processes
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("pace", "late"), [(1, 0), (7, 1), (50, 3)])
def test_shards_that_keep_making_versions_are_stopped_despite_old_answers(pace: int, late: int, together: bool) -> None:
    control: Any = LateControl(100, 101, 100, pace=pace, late=late)
    rounds: list[int] = []
    versions, stats = stop_shards(control, range(3), 20.0, lambda: rounds.append(1), together=together)
    assert len(rounds) < 50
    assert {shard: (s.version, s.state) for shard, s in stats.items()} == {
        shard: (version, "ended") for shard, version in versions.items()
    }
    assert versions == dict(enumerate(control.versions))
    assert not together or len(set(versions.values())) == 1


def test_a_run_that_is_interrupted_while_it_makes_its_last_version_ends_with_this_version() -> None:
    control: Any = LateControl(999, 998, pace=1, late=1)
    control.stops = {0: 1000, 1: 1000}
    assert stop_shards(control, range(2), 20.0, lambda: None, limit=1000)[0] == {0: 1000, 1: 1000}


def test_an_idle_run_is_stopped_at_its_current_version() -> None:
    control: Any = LateControl(100, pace=0, late=0)
    assert stop_shards(control, [0], 5.0, lambda: None)[0] == {0: 100}


def test_shards_that_do_not_stop_are_named() -> None:
    control: Any = LateControl(100, 100, 100, pace=0, late=0)
    first = control._stats()
    control._answer = lambda shards: {shard: first[shard] for shard in shards}
    with pytest.raises(ClusterError, match=r"^shards 0-2 did not stop within 0\.2 s\.$"):
        stop_shards(control, range(3), 0.1, lambda: None)


def test_all_shards_end_at_once_where_they_are_if_one_can_make_no_more_versions() -> None:
    control: Any = LateControl(100, 101, pace=0, late=0, failed=0)
    rounds: list[int] = []
    versions, stats = stop_shards(control, range(2), 600.0, lambda: rounds.append(1))
    assert len(rounds) < 10
    assert versions == {0: 100, 1: 100}
    assert {shard: (s.version, s.state) for shard, s in stats.items()} == {0: (100, "ended"), 1: (101, "ended")}


def test_a_shard_that_fails_while_the_run_ends_does_not_delay_the_end() -> None:
    control: Any = LateControl(100, 101, pace=0, late=0)
    rounds: list[int] = []

    def fails() -> None:
        rounds.append(1)
        control.failed = 0 if len(rounds) > 3 else None

    assert stop_shards(control, range(2), 600.0, fails)[0] == {0: 100, 1: 100}
    assert len(rounds) < 20


def test_asynchronous_shards_end_at_the_same_version_if_there_are_workers() -> None:
    control: Any = LateControl(709, 711, 715, pace=1, late=0)
    assert set(stop_shards(control, range(3), 20.0, lambda: None, together=False)[0].values()) == {
        max(control.versions)
    }


def test_asynchronous_shards_end_at_their_own_versions_without_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ending, "ALONE_WITHIN_S", 0.2)
    control: Any = LateControl(709, 711, 715, pace=0, late=0)
    versions, stats = stop_shards(control, range(3), 600.0, lambda: None, together=False)
    assert versions == {0: 709, 1: 711, 2: 715}
    assert {s.state for s in stats.values()} == {"ended"}


def test_asynchronous_shards_end_at_their_own_versions_if_their_workers_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "ALONE_WITHIN_S", 0.2)
    control: Any = LateControl(709, 711, pace=1, late=0)

    def watch() -> None:
        control.pace = 0 if max(control.versions) > 715 else control.pace

    versions, stats = stop_shards(control, range(2), 5.0, watch, together=False)
    assert versions == dict(enumerate(control.versions))
    assert {s.state for s in stats.values()} == {"ended"}


@pytest.mark.parametrize(("interrupts", "full_s", "seconds"), [(0, 900, 300), (0, 200, 270), (0, 0, 90), (1, 900, 0)])
def test_a_run_whose_last_version_needs_space_waits_for_it_as_long_as_during_the_run(
    monkeypatch: pytest.MonkeyPatch, interrupts: int, full_s: int, seconds: int
) -> None:
    now = [0]

    def stop(*_: object, **__: object) -> None:
        now[0] += 30
        raise ClusterError("shard-0 does not answer.")

    class Machine:
        membership = SimpleNamespace(view=SimpleNamespace(members=(0,)))

        @property
        def out_of_space(self) -> list[str]:
            return ["shard-0"] if now[0] < full_s else []

    monkeypatch.setattr(supervisor_module, "stop_shards", stop)
    monkeypatch.setattr(supervisor_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    about = {
        "console": SimpleNamespace(notice=lambda text: None),
        "_actions": [],
        "_feed": lambda event: None,
        "_look_after": None,
        "machine": Machine(),
        "config": SimpleNamespace(mode="sync", updates=None),
        "control": None,
        "shards": SimpleNamespace(numbers=range(1), rollback=None),
        "interrupts": interrupts,
    }
    supervisor: Any = SimpleNamespace(**about)
    with pytest.raises(ClusterError) as error:
        Supervisor._finish(supervisor, "minutes")
    assert now[0] == seconds
    assert isinstance(error.value, FullDiskError) == (full_s > now[0])


def test_an_error_at_the_end_of_a_failed_run_does_not_hide_the_first_error() -> None:
    told: list[str] = []
    supervisor: Any = SimpleNamespace(console=SimpleNamespace(notice=told.append))

    def close(first: BaseException | None) -> None:
        raise UnwritableError("cannot write summary.json.")

    Supervisor._close(supervisor, close, ClusterError, ClusterError("shard 0 died."), None)
    assert told == ["cannot write summary.json."]
    with pytest.raises(UnwritableError):
        Supervisor._close(supervisor, close, None, None, None)


def test_a_part_that_cannot_be_closed_gives_the_summary_its_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        supervisor_module, "write_summary", lambda path, reason, status, *_: written.append((reason, status))
    )
    about = {
        "is_connected": True,
        "directory": RunDirectory(tmp_path),
        "config": None,
        "checkpoint": None,
        "flavour": "",
    }
    supervisor: Any = SimpleNamespace(**about)

    def close(first: BaseException | None) -> None:
        raise ClusterError("the launcher cannot be closed.")

    def end() -> None:
        with contextlib.ExitStack() as stack:
            for each in (lambda first: Supervisor._write_summary(supervisor, "updates", first), close):
                stack.push(partial(Supervisor._close, supervisor, each))

    with pytest.raises(ClusterError):
        end()
    assert written == [("updates", 3)]


@pytest.mark.parametrize(
    ("error", "status"),
    [(OSError(28, "No space left on device"), 3), (UsageError("no."), 2), (KeyboardInterrupt(), 130)],
)
def test_an_error_after_the_run_corrects_the_exit_status_in_the_summary(
    error: BaseException, status: int, tmp_path: Path
) -> None:
    path = tmp_path / "summary.json"

    def end(*, is_ours: bool) -> None:
        with correcting(path, lambda: is_ours):
            raise error

    def told_status() -> object:
        return json.loads(path.read_text(encoding="utf-8"))["exit_status"]

    with pytest.raises(type(error)):
        end(is_ours=True)
    assert not path.exists()
    write_json(path, {"exit_reason": "updates", "exit_status": 0})
    with pytest.raises(type(error)):
        end(is_ours=False)
    assert told_status() == 0
    with pytest.raises(type(error)):
        end(is_ours=True)
    assert told_status() == status
