"""The state machine of a worker's connection: weights and contributions. Each test covers one behaviour."""

from dataclasses import replace
from typing import Any

import pytest
from support.messages import gradient_header
from support.stand_ins import frame
from support.worker_rig import (
    computing,
    contribute,
    contributed,
    heartbeat,
    need,
    need_message,
    new,
    of,
    pull,
    pushed,
    sent,
    snapshot,
    snapshots,
    weights,
    welcome,
    welcomed,
)

from zmqrl.ps.wire import messages as m
from zmqrl.ps.worker.events import (
    Assembled,
    ControlArrived,
    Failed,
    Log,
    PublicationArrived,
    Pulling,
    Release,
    SendBlocked,
    SendGradient,
    Tick,
    WeightsSlice,
    Writable,
)

# joining


def test_hello_is_sent_to_every_shard_and_repeated_until_welcome() -> None:
    worker = new()
    assert [shard for shard, _ in sent(m.Hello, worker.handle(Tick(), 0.0))] == [0, 1]
    assert sent(m.Hello, worker.handle(Tick(), 0.5)) == []
    welcome(worker, 0)
    ((shard, hello),) = sent(m.Hello, worker.handle(Tick(), 1.0))
    assert shard == 1
    assert (hello.role, hello.rank, hello.incarnation, hello.layout, hello.secret) == ("worker", 3, 9, "layout", "")


def test_a_new_worker_requests_weights_that_were_published_earlier() -> None:
    worker = new()
    assert snapshots(welcome(worker, 0, 7, published=True)) == [(0, None)]
    assert snapshots(welcome(worker, 1, 7, published=False)) == []


@pytest.mark.parametrize("code", ["run", "layout", "rank", "replaced", "secret"])
def test_a_refusal_ends_the_worker_with_the_reason_of_the_shard(code: Any) -> None:
    run = "other" if code == "run" else "run"
    refuse = m.Refuse(run=run, code=code, reason="this is why.")
    (failed,) = of(Failed, new().handle(ControlArrived(1, refuse), 0.0))
    assert failed.reason == "shard 1 refuses worker 3: this is why."


def test_messages_of_another_run_are_ignored() -> None:
    worker = computing()
    assert of(Log, weights(worker, 0, 9, run="other"))
    assert worker.shards[0].version == 0


# weights


def test_a_version_is_assembled_when_all_its_slices_have_arrived() -> None:
    worker = welcomed()
    pull(worker, -1)
    assert of(Assembled, weights(worker, 1, 0)) == []
    slices: tuple[WeightsSlice, ...] = ("f32", frame("slice 0 of 0")), ("f32", frame("slice 1 of 0"))
    assert of(Assembled, weights(worker, 0, 0)) == [Assembled(1, (0, 0), slices)]


def test_weights_and_every_push_carry_the_greatest_progress_of_the_slices() -> None:
    worker = welcomed()
    pull(worker, -1)
    weights(worker, 1, 0, elapsed=20)
    (assembled,) = of(Assembled, weights(worker, 0, 0, elapsed=70))
    assert assembled.elapsed == 70
    sent = of(SendGradient, contribute(worker, 0, elapsed=assembled.elapsed))
    sent += of(SendGradient, need(worker, 1, 0))
    assert [action.header.elapsed for action in sent] == [70, 70, 70]
    weights(worker, 0, 1, elapsed=80)
    weights(worker, 1, 1, elapsed=90)
    (assembled,) = of(Assembled, pull(worker, 0))
    assert assembled.elapsed == 90


def test_slices_that_arrived_before_the_pull_are_assembled_at_once() -> None:
    worker = contributed()
    weights(worker, 0, 1)
    weights(worker, 1, 1)
    assert [a.version for a in of(Assembled, pull(worker, 0))] == [1]


def test_each_pull_is_answered_once() -> None:
    worker = computing()
    assert of(Assembled, [*weights(worker, 0, 1), *weights(worker, 1, 1)]) == []


def test_an_answer_names_its_pull() -> None:
    worker = contributed()
    worker.handle(Pulling(0, 1, number=4), 0.0)
    worker.handle(Pulling(0, 1, number=5), 0.0)
    assert [a.pull for a in of(Assembled, [*weights(worker, 0, 1), *weights(worker, 1, 1)])] == [5]


def test_slices_of_different_versions_are_never_assembled() -> None:
    worker = contributed()
    pull(worker, 0)
    assert of(Assembled, [*weights(worker, 0, 1), *worker.handle(Tick(), 100.0)]) == []


def test_slices_of_different_generations_are_never_assembled() -> None:
    worker = contributed()
    pull(worker, 0)
    weights(worker, 0, 1, generation=2)
    assert of(Assembled, weights(worker, 1, 1)) == []
    assert [a.generation for a in of(Assembled, weights(worker, 1, 1, generation=2))] == [2]


def test_no_version_is_assembled_before_every_shard_has_welcomed_the_worker() -> None:
    worker = new()
    pull(worker, -1)
    welcome(worker, 0)
    assert of(Assembled, [*weights(worker, 0, 0), *weights(worker, 1, 0)]) == []
    assert [a.version for a in of(Assembled, welcome(worker, 1))] == [0]


def test_a_version_is_assembled_again_only_on_request() -> None:
    worker = computing(4)
    assert of(Assembled, pull(worker, 4)) == []
    assert [a.version for a in of(Assembled, pull(worker, 3))] == [4]


def test_a_heartbeat_reveals_a_lost_publication_which_is_requested_once() -> None:
    worker = contributed()
    assert snapshots(heartbeat(worker, 0, 1, now=1.0)) == [(0, None)]
    assert snapshots(heartbeat(worker, 0, 1, now=2.0)) == []
    assert snapshots(heartbeat(worker, 0, 1, now=3.1)) == [(0, None)]
    pull(worker, 0, now=3.2)
    weights(worker, 1, 1, now=3.2)
    assert [a.version for a in of(Assembled, snapshot(worker, 0, 1, now=3.3))] == [1]


def test_a_worker_requests_only_published_weights() -> None:
    worker = welcomed()
    assert snapshots(pull(worker, -1)) == []
    assert snapshots(heartbeat(worker, 0, 0, published=False)) == []


def test_unanswered_requests_back_off_until_an_answer_arrives() -> None:
    worker = contributed()
    asked = [at for at in range(100) if snapshots(heartbeat(worker, 0, 1, now=float(at)))]
    assert asked == [0, 2, 6, 14, 30, 60, 90]
    snapshot(worker, 0, 1)
    heartbeat(worker, 0, 2, now=200.0)
    assert snapshots(heartbeat(worker, 0, 2, now=202.0)) == [(0, None)]


def test_a_missing_snapshot_is_requested_again_later() -> None:
    worker = contributed()
    heartbeat(worker, 0, 1, now=1.0)
    worker.handle(ControlArrived(0, m.Missing(run="run", shard=0, version=1)), 1.1)
    assert snapshots(heartbeat(worker, 0, 1, now=1.2)) == []
    assert snapshots(heartbeat(worker, 0, 1, now=3.0)) == [(0, None)]


def test_an_older_snapshot_does_not_replace_a_newer_slice() -> None:
    worker = contributed()
    weights(worker, 0, 1)
    weights(worker, 0, 2)
    snapshot(worker, 0, 1)
    assert worker.shards[0].version == 2


def test_a_worker_cut_off_from_one_shard_holds_a_bounded_number_of_payloads() -> None:
    worker = contributed()
    for version in range(1, 200):
        weights(worker, 1, version)
        assert len(worker.shards[1].payloads) <= 2
    assert [sorted(shard.payloads) for shard in worker.shards] == [[0], [198, 199]]


def test_payloads_are_dropped_once_no_shard_needs_help_with_them() -> None:
    worker = contributed()
    for version in (1, 2, 3):
        weights(worker, 0, version)
        weights(worker, 1, version)
    assert [sorted(shard.payloads) for shard in worker.shards] == [[3], [3]]


# contributions


def test_a_contribution_goes_to_every_shard_and_names_its_version() -> None:
    worker = computing()
    first, second = of(SendGradient, contribute(worker, 0))
    assert first.header == gradient_header(version=0, rank=3, incarnation=9)
    assert second.header == replace(first.header, shard=1)
    assert worker.tally.sent == 2


def test_a_late_slice_is_skipped_at_one_shard_and_still_pushed_to_the_others() -> None:
    worker = computing()
    weights(worker, 0, 1)
    assert pushed(contribute(worker, 0)) == [(1, 0, 0)]
    assert (worker.tally.sent, worker.tally.skipped) == (1, 1)
    assert not worker.passed(0)
    weights(worker, 1, 1)
    assert worker.passed(0)


def test_work_that_every_shard_has_passed_is_skipped_and_released() -> None:
    worker = computing()
    weights(worker, 0, 1)
    weights(worker, 1, 1)
    assert contribute(worker, 0) == [Release()]
    assert worker.tally.skipped == 2


def test_a_gradient_is_not_for_weights_that_came_too_late_for_a_pull() -> None:
    worker = computing()
    weights(worker, 0, 1)
    weights(worker, 1, 1)
    assert of(Assembled, pull(worker, 0)), "the pull has timed out before"
    assert contribute(worker, 0) == [Release()]
    assert worker.tally.skipped == 2


def test_work_from_a_rolled_back_generation_is_skipped_and_released() -> None:
    worker = computing()
    weights(worker, 0, 0, generation=2)
    weights(worker, 1, 0, generation=2)
    assert contribute(worker, 0) == [Release()]


def test_a_blocked_push_is_sent_when_the_socket_is_writable() -> None:
    worker = contributed()
    worker.handle(SendBlocked(1), 0.0)
    assert (worker.pending(0), worker.pending(1), worker.tally.sent) == (False, True, 1)
    assert pushed(worker.handle(Writable(1), 0.0)) == [(1, 0, 0)]
    assert (worker.pending(1), worker.tally.sent, worker.tally.resent) == (False, 2, 0)


def test_a_blocked_push_is_skipped_if_it_has_become_late() -> None:
    worker = contributed()
    worker.handle(SendBlocked(1), 0.0)
    weights(worker, 1, 1, ranks=(1, 2))
    assert worker.handle(Writable(1), 0.0) == []
    assert (worker.tally.sent, worker.tally.skipped, worker.tally.unused) == (1, 1, 0)


def test_a_push_waits_until_the_shard_has_welcomed_the_worker() -> None:
    worker = computing()
    heartbeat(worker, 0, 0, incarnation=6)
    assert pushed(contribute(worker, 0)) == [(1, 0, 0)]
    assert not worker.pending(0)
    assert pushed(welcome(worker, 0, incarnation=6)) == [(0, 0, 0)]


def test_a_worker_resends_its_slice_if_a_need_message_does_not_list_its_rank() -> None:
    worker = contributed()
    assert pushed(need(worker, 0, 0, held=(1, 2))) == [(0, 0, 1)]
    assert pushed(need(worker, 0, 0)) == [(0, 0, 2)]
    assert (worker.tally.sent, worker.tally.resent) == (2, 2)


@pytest.mark.parametrize(("version", "held"), [(0, (3,)), (0, (1, 3)), (1, ())])
def test_a_worker_ignores_a_need_message_that_lists_its_rank_or_another_version(version: int, held: Any) -> None:
    assert pushed(need(contributed(), 0, version, held)) == []


def test_a_blocked_resend_is_still_a_resend_when_it_is_sent() -> None:
    worker = contributed()
    need(worker, 0, 0)
    worker.handle(SendBlocked(0), 0.0)
    assert (worker.tally.sent, worker.tally.resent) == (2, 0)
    assert pushed(worker.handle(Writable(0), 0.0)) == [(0, 0, 1)]
    assert (worker.tally.sent, worker.tally.resent) == (2, 1)


def test_a_resend_names_the_current_view_of_the_shard() -> None:
    worker = contributed()
    heartbeat(worker, 0, 0, view=2)
    (action,) = of(SendGradient, worker.handle(PublicationArrived(0, need_message(view=2)), 0.0))
    assert action.header.view == 2


def test_the_record_of_a_version_shows_the_outcome_of_a_slice() -> None:
    worker = contributed()
    weights(worker, 0, 1, ranks=(1, 3))
    assert of(Release, weights(worker, 1, 1, ranks=(1, 2))) == [Release()]
    assert (worker.tally.used, worker.tally.unused, worker.tally.unknown) == (1, 1, 0)


def test_a_lost_record_makes_the_outcome_unknown() -> None:
    worker = contributed()
    heartbeat(worker, 0, 1)
    assert of(Release, weights(worker, 1, 2, ranks=(1, 2))) == [Release()]
    assert worker.tally.unknown == 2


def test_a_snapshot_carries_the_record_too() -> None:
    worker = contributed(shards=1)
    assert Release() in snapshot(worker, 0, 1, ranks=(3,))
    assert worker.tally.used == 1


def test_the_gradient_is_released_once_and_only_after_all_shards_are_past_it() -> None:
    worker = contributed()
    assert of(Release, weights(worker, 1, 1)) == []
    assert of(Release, weights(worker, 0, 1)) == [Release()]
    assert of(Release, [*weights(worker, 0, 2), *weights(worker, 1, 2)]) == []


def test_a_rollback_releases_the_gradient_and_leaves_its_outcome_unknown() -> None:
    worker = contributed()
    worker.handle(SendBlocked(1), 0.0)
    assert of(Release, weights(worker, 0, 0, generation=2)) == []
    assert of(Release, weights(worker, 1, 0, generation=2)) == [Release()]
    assert (worker.tally.unknown, worker.tally.skipped) == (1, 1)


def test_every_slice_is_accounted_for_even_if_work_is_contributed_twice() -> None:
    worker = contributed()
    assert of(Release, contribute(worker, 0)) == []
    weights(worker, 0, 1, ranks=(3,))
    weights(worker, 1, 1, ranks=(3,))
    assert (worker.tally.sent, worker.tally.unknown, worker.tally.used) == (4, 2, 2)
