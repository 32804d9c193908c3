"""When the code reports a stalled version, which processes it inspects, and what users read. No processes, no clock."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.observe.stalls import (
    ANSWER_WITHIN_S,
    ASK_AGAIN_S,
    FIRST_PATIENCE_S,
    LEAST_PATIENCE_S,
    LONGEST_PAUSE_S,
    MOST_ASKED,
    MOST_WRITTEN,
    USUAL_TIMES,
    Awaited,
    Doing,
    News,
    Stall,
    Stalls,
)
from zmqrl.process_id import ROLES, ProcessId, shard_id, worker_id

GAME = 'File "/home/me/games/maze.py", line 12 in step'
VECTOR = 'File "/venv/gymnasium/vector/sync.py", line 240 in step'
HANGS = Doing(state="waiting", kernel="futex_do_wait", stack=(GAME, VECTOR))
WORKER = Awaited(process=worker_id(3), span="env_step", span_s=11.84)
TURN_S = 0.25


class Watched:
    """A run whose versions take ``step_s`` until they stall. This class records all news about the stalls."""

    def __init__(self, *, step_s: float = 0.1, versions: int = 20, per_iteration: int = 1) -> None:
        self.now, self.version = 100.0, 0
        self.stalls = Stalls(per_iteration)
        self.stalls.made(0, self.now)
        self.news: list[tuple[float, News]] = []
        for _ in range(versions):
            self.make(step_s)

    def make(self, took_s: float) -> None:
        """Make a version after ``took_s``, without a check before."""
        self.now += took_s
        self.version += 1
        self.stalls.made(self.version, self.now)

    def wait(self, seconds: float, awaited: Sequence[Awaited] = (WORKER,)) -> None:
        """Check repeatedly while time passes. Meanwhile, the open spans of workers grow longer."""
        began = self.now
        for turn in range(1, round(seconds / TURN_S) + 1):
            self.now = began + turn * TURN_S
            grown = [replace(each, span_s=each.span_s + turn * TURN_S) if each.span else each for each in awaited]
            self.news.append((self.now, self.stalls.look(grown, self.now)))

    def asked(self) -> list[ProcessId]:
        return [process for _, news in self.news for process in news.ask]

    def told(self) -> list[Stall]:
        return [news.stall for _, news in self.news if news.stall is not None and news.tell]

    def shown(self) -> list[Stall]:
        return [news.stall for _, news in self.news if news.stall is not None]


def test_versions_that_take_their_usual_time_are_not_a_stall() -> None:
    run = Watched()
    for _ in range(50):
        run.wait(LEAST_PATIENCE_S - 1.0)
        run.make(0.5)
    assert run.asked() == []
    assert run.shown() == []


def test_a_version_that_takes_too_long_is_shown_at_once_and_logged_with_the_stack() -> None:
    run = Watched()
    run.wait(LEAST_PATIENCE_S)
    assert run.asked() == [worker_id(3)]
    (shown,) = run.shown()
    assert (shown.version, shown.waited_s, shown.awaited[0].doing) == (20, LEAST_PATIENCE_S, None)
    assert run.told() == []
    run.stalls.answered(worker_id(3), HANGS)
    run.wait(TURN_S)
    (told,) = run.told()
    assert told.awaited[0].doing == HANGS


def test_a_process_that_does_not_answer_delays_the_notice_only_for_a_while() -> None:
    run = Watched()
    run.wait(LEAST_PATIENCE_S + ANSWER_WITHIN_S - TURN_S)
    assert run.told() == []
    run.wait(TURN_S)
    assert len(run.told()) == 1


def test_an_external_worker_is_described_by_its_span_and_never_inspected() -> None:
    run = Watched()
    run.wait(60.0, [replace(WORKER, is_external=True)])
    assert run.asked() == []
    assert run.told()[0].waited_s == LEAST_PATIENCE_S


def test_a_process_that_is_being_restarted_is_not_inspected() -> None:
    run = Watched()
    run.wait(60.0, [replace(WORKER, is_running=False)])
    assert run.asked() == []
    assert "it is being restarted" in run.told()[0].sentence()


def test_only_the_processes_longest_in_their_spans_are_inspected() -> None:
    run = Watched()
    many = [replace(WORKER, process=worker_id(rank), span_s=float(rank)) for rank in range(50)]
    run.wait(LEAST_PATIENCE_S, many)
    assert run.asked() == [worker_id(rank) for rank in (49, 48, 47, 46)]
    assert len(run.asked()) == MOST_ASKED
    (shown,) = run.shown()
    assert (len(shown.awaited), shown.others) == (MOST_WRITTEN, 50 - MOST_WRITTEN)


def test_inspections_and_notices_are_repeated_with_growing_pauses() -> None:
    run = Watched()
    run.wait(3600.0)
    asked_at = [at for at, news in run.news if news.ask]
    pauses = [after - before for before, after in itertools.pairwise(asked_at)]
    assert pauses[0] >= ASK_AGAIN_S
    assert pauses == sorted(pauses)
    assert max(pauses) <= LONGEST_PAUSE_S + TURN_S
    assert len(run.told()) == len(asked_at)


def test_a_process_that_goes_missing_later_is_also_inspected_and_named() -> None:
    run = Watched()
    run.wait(LEAST_PATIENCE_S)
    run.stalls.answered(worker_id(3), HANGS)
    run.wait(1.0)
    run.wait(1.0, [Awaited(process=shard_id(0), silent_s=6.0)])
    assert run.asked() == [worker_id(3), shard_id(0)]
    run.stalls.answered(shard_id(0), Doing(state="stopped"))
    run.wait(1.0, [Awaited(process=shard_id(0), silent_s=7.0)])
    run.wait(1.0)
    assert [told.awaited[0].process for told in run.told()] == [worker_id(3), shard_id(0)]


def test_the_end_of_a_stall_is_logged_only_if_the_stall_was_logged() -> None:
    run = Watched()
    run.wait(LEAST_PATIENCE_S)
    run.make(0.0)
    run.wait(TURN_S)
    (over,) = [news for _, news in run.news if news.over is not None]
    assert not over.tell
    run.wait(LEAST_PATIENCE_S + ANSWER_WITHIN_S)
    run.make(0.0)
    run.wait(TURN_S)
    assert run.news[-1][1].tell
    assert run.news[-1][1].over is not None
    assert run.news[-1][1].over.version == 21


def test_a_process_is_inspected_rarely_even_over_several_stalls() -> None:
    run = Watched()
    for _ in range(4):
        run.wait(LEAST_PATIENCE_S + 1.0)
        for _ in range(10):
            run.make(0.1)
    assert len(run.shown()) > 4
    assert run.asked() == [worker_id(3)]
    run.wait(ASK_AGAIN_S, [])
    run.wait(LEAST_PATIENCE_S)
    assert run.asked() == [worker_id(3)] * 2


def test_a_process_that_replaces_a_dead_one_is_also_inspected() -> None:
    run = Watched()
    run.wait(LEAST_PATIENCE_S)
    run.stalls.answered(worker_id(3), HANGS)
    run.wait(TURN_S)
    run.stalls.forget(worker_id(3))
    run.wait(1.0, [replace(WORKER, is_there=False, span="")])
    assert run.shown()[-1].awaited[0].doing is None
    assert run.shown()[-1].awaited[0].span == ""


def test_slow_rollouts_between_quick_updates_are_not_a_stall() -> None:
    run = Watched(versions=0, per_iteration=16)
    for _ in range(12):
        run.wait(19.0)
        for _ in range(16):
            run.make(0.1)
    assert run.shown() == []
    run.wait(USUAL_TIMES * 19.0 - 1.0)
    assert run.shown() == []
    run.wait(ANSWER_WITHIN_S + 2.0)
    assert len(run.told()) == 1


def test_one_stall_does_not_hide_the_next_one() -> None:
    run = Watched()
    run.make(600.0)
    for _ in range(3):
        run.make(0.1)
    assert run.stalls.patience_s() == LEAST_PATIENCE_S


@pytest.mark.parametrize("versions", [0, 1, 10])
def test_the_first_versions_have_more_time_before_they_count_as_a_stall(versions: int) -> None:
    run = Watched(versions=versions, per_iteration=16)
    run.wait(FIRST_PATIENCE_S - TURN_S)
    assert run.shown() == []
    run.wait(TURN_S)
    assert len(run.shown()) == 1


def test_time_in_which_the_supervisor_did_not_run_does_not_count() -> None:
    run = Watched()
    run.wait(1.0)
    run.now += 3600.0
    run.stalls.pardon(3600.0)
    run.wait(LEAST_PATIENCE_S - 1.0 - TURN_S)
    assert run.shown() == []


def test_a_rollback_does_not_count_as_a_slow_version() -> None:
    run = Watched()
    run.now += 60.0
    run.stalls.made(3, run.now)
    run.version = 3
    run.make(0.1)
    run.make(0.1)
    assert run.stalls.patience_s() == LEAST_PATIENCE_S


def test_a_run_whose_shards_have_ended_has_no_stall() -> None:
    run = Watched()
    run.wait(3600.0, [])
    assert run.shown() == []
    run.wait(LEAST_PATIENCE_S - TURN_S)
    assert run.shown() == []


def test_the_span_of_a_process_that_fell_silent_is_remembered() -> None:
    run = Watched()
    run.wait(LEAST_PATIENCE_S)
    run.wait(2.0, [replace(WORKER, span="", span_s=0.0, silent_s=9.0)])
    shown = run.shown()[-1].awaited[0]
    assert shown.span == "env_step"
    assert shown.span_s > WORKER.span_s + LEAST_PATIENCE_S


# what users read


def stall(*awaited: Awaited, others: int = 0) -> str:
    return Stall(version=812, waited_s=12.1, awaited=awaited, others=others).placed(lambda _: "h2").sentence()


def test_a_worker_is_named_with_its_host_its_span_and_its_stack() -> None:
    assert stall(replace(WORKER, doing=HANGS)) == (
        "version 812 has waited 12 s for worker-3 (host h2): in env_step for 11.8 s; "
        "stack: step (maze.py:12) < step (sync.py:240)"
    )


def test_a_notice_says_that_a_process_is_stopped() -> None:
    stopped = replace(WORKER, silent_s=11.0, doing=Doing(state="stopped"))
    assert stall(stopped).endswith("worker-3 (host h2): stopped by a signal, silent for 11 s, in env_step for 11.8 s")
    shard = Awaited(process=shard_id(1), silent_s=11.0, doing=Doing(state="stopped"))
    assert stall(shard).endswith("for shard-1 (host h2): stopped by a signal, silent for 11 s")


def test_an_external_worker_is_named_without_a_host_even_if_the_worker_has_no_span() -> None:
    external = replace(WORKER, is_external=True)
    assert stall(external).endswith("for worker-3 (external): in env_step for 11.8 s")
    assert stall(replace(external, span="")).endswith("for worker-3 (external): in no named span")
    assert stall(replace(external, span="", is_there=False)).endswith("for worker-3 (external): not connected")


def test_processes_in_the_same_span_are_named_together() -> None:
    alike = [replace(WORKER, process=worker_id(rank), doing=HANGS) for rank in (1, 2, 3)]
    said = stall(*alike, replace(WORKER, process=worker_id(7), span="gradient", span_s=6.0), others=9)
    assert "for worker-1..3 (host h2): in env_step" in said
    assert "and for worker-7 (host h2): in gradient for 6.0 s" in said
    assert said.endswith("and for 9 more processes")


def test_the_span_name_of_a_worker_cannot_forge_a_line() -> None:
    assert "\n" not in stall(replace(WORKER, span="x\nversion 900"))


@given(
    st.lists(
        st.builds(
            Awaited,
            process=st.builds(ProcessId, st.sampled_from(ROLES), st.integers(0, 1023)),
            host=st.text(),
            is_external=st.booleans(),
            is_running=st.booleans(),
            is_there=st.booleans(),
            silent_s=st.floats(0, 1e6),
            unreachable_s=st.none() | st.floats(0, 1e6),
            span=st.text(max_size=16),
            span_s=st.floats(0, 1e6),
            doing=st.none()
            | st.builds(
                Doing,
                state=st.sampled_from(["running", "waiting", "stopped", "blocked"]),
                kernel=st.text(),
                stack=st.lists(st.text()).map(tuple),
            ),
        )
    )
)
def test_a_stall_is_read_from_its_file_as_it_was_written(awaited: list[Awaited]) -> None:
    written = Stall(version=3, waited_s=6.5, awaited=tuple(awaited), others=2)
    assert Stall.from_json(json.loads(json.dumps(written.to_json()))) == written
    assert written.sentence()
