"""The state machine of a worker's connection: repair, restarts, rollback and the end. Each test covers one
behaviour.
"""

from support.worker_rig import (
    bye,
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
    Ended,
    Failed,
    HandshakeFailed,
    Leaving,
    Log,
    PublicationArrived,
    Release,
    SendBlocked,
    SendControl,
    Tick,
    Writable,
)
from zmqrl.ps.worker.machine import WorkerMachine

# repair: a version is still open at some shards because a contributor died before it had sent to all shards


def late_worker() -> WorkerMachine:
    """An idle worker that has not contributed to version 1. Shard 1 has already made version 2."""
    worker = contributed()
    for shard in (0, 1):
        weights(worker, shard, 1)
    weights(worker, 1, 2)
    pull(worker, 0)
    return worker


def test_an_idle_worker_helps_a_shard_that_repeats_its_need_message() -> None:
    worker = late_worker()
    assert of(Assembled, need(worker, 0, 1)) == []
    assert [a.version for a in of(Assembled, need(worker, 0, 1))] == [1]
    assert pushed(contribute(worker, 1)) == [(0, 1, 0)]


def test_a_new_worker_gets_the_previous_version_from_shards_that_are_ahead() -> None:
    worker = new()
    worker.handle(Tick(), 0.0)
    welcome(worker, 0, 1, published=True)
    welcome(worker, 1, 2, published=True)
    snapshot(worker, 0, 1)
    snapshot(worker, 1, 2)
    pull(worker, -1)
    need(worker, 0, 1)
    assert snapshots(need(worker, 0, 1)) == [(1, 1)]
    assert [a.version for a in of(Assembled, snapshot(worker, 1, 1))] == [1]


def test_a_worker_that_has_contributed_resends_instead_of_computing_again() -> None:
    worker = contributed()
    weights(worker, 1, 1)
    pull(worker, 0)
    actions = [*need(worker, 0, 0), *need(worker, 0, 0)]
    assert of(Assembled, actions) == []
    assert pushed(actions) == [(0, 0, 1), (0, 0, 2)]


def test_a_worker_does_not_help_a_shard_that_holds_its_slice() -> None:
    worker = late_worker()
    assert of(Assembled, [action for _ in range(4) for action in need(worker, 0, 1, held=(3,))]) == []


def test_a_worker_helps_the_stuck_shard_that_does_not_hold_its_slice() -> None:
    worker = contributed(shards=3)
    for shard in (0, 1, 2):
        weights(worker, shard, 1)
    weights(worker, 2, 2)
    pull(worker, 0)
    actions = []
    for _ in range(2):
        actions += [*need(worker, 0, 1, held=(3,)), *need(worker, 1, 1, held=(1,))]
    assert [a.version for a in of(Assembled, actions)] == [1]


def test_a_worker_more_than_one_version_behind_does_not_help() -> None:
    worker = late_worker()
    weights(worker, 1, 3)
    assert [action for _ in range(4) for action in need(worker, 0, 1)] == []


def test_a_need_message_for_a_past_version_does_not_trigger_help() -> None:
    worker = late_worker()
    assert [action for _ in range(4) for action in need(worker, 0, 0)] == []


def test_a_worker_stops_helping_a_shard_that_made_progress() -> None:
    worker = late_worker()
    need(worker, 0, 1)
    assert [a.version for a in of(Assembled, weights(worker, 0, 2))] == [2]


# shards that restart and roll back


def test_a_restarted_shard_gets_hello_and_no_request_before_its_welcome() -> None:
    worker = contributed()
    actions = heartbeat(worker, 0, 0, incarnation=6)
    assert [shard for shard, _ in sent(m.Hello, actions)] == [0]
    assert of(Log, actions)[0].text == "shard 0 has restarted"
    assert snapshots(heartbeat(worker, 0, 1, incarnation=6)) == []
    assert snapshots(welcome(worker, 0, 1, incarnation=6, published=True)) == [(0, None)]


def test_a_restarted_shard_gets_its_lost_slice_on_request() -> None:
    worker = contributed()
    heartbeat(worker, 0, 0, incarnation=6)
    welcome(worker, 0, incarnation=6)
    message = need_message(incarnation=6)
    assert pushed(worker.handle(PublicationArrived(0, message), 0.0)) == [(0, 0, 1)]


def test_messages_from_an_older_process_of_a_shard_are_ignored() -> None:
    worker = contributed()
    heartbeat(worker, 0, 0, incarnation=6)
    for late in (weights(worker, 0, 5), snapshot(worker, 0, 5), welcome(worker, 0, 5), bye(worker, 0, 5)):
        assert of(SendControl, late) == []
    assert (worker.shards[0].version, worker.shards[0].welcomed, worker.shards[0].final) == (0, False, None)


def test_messages_from_before_a_rollback_are_ignored() -> None:
    worker = contributed(7)
    weights(worker, 0, 5, generation=2)
    for late in (weights(worker, 0, 8), snapshot(worker, 0, 8), welcome(worker, 0, 8), bye(worker, 0, 8)):
        assert late == []
    assert (worker.shards[0].version, worker.shards[0].final) == (5, None)


def test_lower_versions_count_as_new_after_a_rollback() -> None:
    worker = contributed(7)
    pull(worker, 7)
    weights(worker, 0, 5, generation=2)
    assert [(a.generation, a.version) for a in of(Assembled, weights(worker, 1, 5, generation=2))] == [(2, 5)]
    assert of(Assembled, pull(worker, 5, generation=2)) == []


def test_a_rollback_that_a_timed_out_pull_would_have_shown_is_shown_by_the_next_one() -> None:
    worker = contributed(7)
    pull(worker, 7)
    weights(worker, 0, 5, generation=2)
    assert of(Assembled, weights(worker, 1, 5, generation=2)), "this answer comes too late"
    assert [(a.generation, a.version) for a in of(Assembled, pull(worker, 7))] == [(2, 5)]


def test_a_welcome_without_state_does_not_welcome_the_worker() -> None:
    worker = new()
    welcome(worker, 0, state="empty")
    assert not worker.shards[0].welcomed


# the end


def test_the_run_ends_when_every_shard_says_bye_at_the_same_version() -> None:
    worker = contributed()
    assert of(Ended, bye(worker, 0, 1)) == []
    assert of(Ended, bye(worker, 1, 1)) == [Ended(1)]
    assert of(Ended, bye(worker, 1, 1)) == []


def test_byes_at_different_versions_do_not_end_the_run() -> None:
    worker = contributed()
    assert of(Ended, [*bye(worker, 0, 1), *bye(worker, 1, 2)]) == []
    assert of(Ended, bye(worker, 0, 2)) == [Ended(2)]


def test_a_cancelled_stop_cancels_its_bye() -> None:
    worker = contributed()
    bye(worker, 0, 1)
    heartbeat(worker, 0, 1)
    assert of(Ended, bye(worker, 1, 1)) == []


def test_bye_releases_the_gradient_and_no_version_is_assembled_afterwards() -> None:
    worker = contributed()
    assert of(Release, [*bye(worker, 0, 1), *bye(worker, 1, 1)]) == [Release()]
    pull(worker, 0)
    assert of(Assembled, [*weights(worker, 0, 1), *weights(worker, 1, 1)]) == []


def test_no_work_begins_on_a_version_that_a_shard_will_not_accept() -> None:
    worker = contributed()
    weights(worker, 0, 1)
    weights(worker, 1, 1)
    bye(worker, 0, 1)
    assert of(Assembled, pull(worker, 0)) == []
    assert [a.version for a in of(Assembled, heartbeat(worker, 0, 1))] == [1]


def test_a_worker_helps_a_stuck_shard_even_if_another_has_already_ended() -> None:
    worker = contributed()
    for shard in (0, 1):
        weights(worker, shard, 1)
    bye(worker, 1, 2)
    pull(worker, 0)
    need(worker, 0, 1)
    actions = need(worker, 0, 1)
    assert [a.version for a in of(Assembled, actions)] == [1]


def test_a_worker_that_leaves_tells_every_shard() -> None:
    leave = m.Leave(run="run", rank=3, incarnation=9)
    assert sent(m.Leave, welcomed().handle(Leaving(), 0.0)) == [(0, leave), (1, leave)]


# time


def test_pings_report_the_computing_thread_and_the_newest_version_once_per_second() -> None:
    worker = contributed(4)
    ((_, ping), (_, other)) = sent(m.Ping, worker.handle(Tick(), 1.0))
    assert ping == m.Ping(run="run", rank=3, incarnation=9, generation=1, version=4, computed=2, sent_us=1_000_000)
    assert other == ping
    assert sent(m.Ping, worker.handle(Tick(), 1.5)) == []


def test_pings_report_the_span_of_the_computing_thread() -> None:
    ((_, ping), _) = sent(m.Ping, contributed(4).handle(Tick("env_step", 2500), 1.0))
    assert (ping.span, ping.span_ms) == ("env_step", 2500)


def test_a_shard_that_is_silent_for_the_lease_ends_the_worker() -> None:
    worker = contributed()
    heartbeat(worker, 0, 0, now=30.0)
    assert of(Failed, worker.handle(Tick(), 59.9)) == []
    (failed,) = of(Failed, worker.handle(Tick(), 60.0))
    assert failed.reason == "no word from shard 1 for 60 s: is it still running?"


def test_a_failed_handshake_is_logged_at_once_and_again_when_the_worker_gives_up() -> None:
    worker = new()
    failed = worker.handle(HandshakeFailed(1), 2.0)
    assert [type(action) for action in failed] == [Log]
    assert worker.handle(HandshakeFailed(1), 3.0) == [], "it was already logged"
    assert "the handshake with shard 1 failed" in worker.where(3.0)
    heartbeat(worker, 0, 0, now=50.0)
    (failure,) = of(Failed, worker.handle(Tick(), 60.0))
    assert failure.reason.startswith("no word from shard 1 for 60 s: the handshake with shard 1 failed")


def test_a_failed_handshake_is_forgotten_once_the_shard_sends_a_message() -> None:
    worker = new()
    worker.handle(HandshakeFailed(1), 2.0)
    for shard in range(2):
        heartbeat(worker, shard, 0, now=3.0)
    assert "handshake" not in worker.where(3.0)
    (failure,) = of(Failed, worker.handle(Tick(), 70.0))
    assert failure.reason.endswith("is it still running?")


def pong(worker: WorkerMachine, now: float, shard: int = 0) -> None:
    worker.handle(ControlArrived(shard, m.Pong(run="run", shard=shard, sent_us=0, received_us=0, answered_us=0)), now)


def test_any_message_renews_the_lease() -> None:
    worker = contributed(shards=1)
    heartbeat(worker, 0, 0, now=45.0)
    pong(worker, 50.0)
    assert of(Failed, worker.handle(Tick(), 104.0)) == []


def test_a_shard_that_answers_but_whose_publications_do_not_arrive_ends_the_worker() -> None:
    worker = contributed()
    for now in (30.0, 60.0, 329.0):
        heartbeat(worker, 0, 0, now=now)
        if now < 60.0:
            heartbeat(worker, 1, 0, now=now)
        pong(worker, now, shard=1)
    assert of(Failed, worker.handle(Tick(), 329.9)) == []
    (failed,) = of(Failed, worker.handle(Tick(), 330.0))
    assert failed.reason == (
        "shard 1 answers, but its publications have not arrived for 300 s: check the connection to its port for "
        "weights, and its speed."
    )


def test_publications_are_expected_only_from_a_shard_that_has_welcomed_the_worker() -> None:
    worker = new(shards=1)
    for now in range(0, 200, 10):
        pong(worker, float(now))
    assert of(Failed, worker.handle(Tick(), 200.0)) == []
    welcome(worker, 0, now=200.0)
    pong(worker, 499.0)
    assert of(Failed, worker.handle(Tick(), 499.9)) == []
    assert len(of(Failed, worker.handle(Tick(), 500.0))) == 1


def test_a_shard_that_answers_but_to_which_no_gradient_can_be_sent_ends_the_worker() -> None:
    worker = contributed(shards=1)
    worker.handle(SendBlocked(0), 1.0)
    for version, now in enumerate((20.0, 160.0, 300.0), start=1):  # the other workers make versions
        weights(worker, 0, version, ranks=(1, 2), now=now)
        pull(worker, version - 1)
        contribute(worker, version)
        worker.handle(SendBlocked(0), now)
        assert worker.pending(0)
    assert of(Failed, worker.handle(Tick(), 300.9)) == []
    (failed,) = of(Failed, worker.handle(Tick(), 301.0))
    assert failed.reason == (
        "shard 0 answers, but no gradient could be sent to it for 300 s: check the connection to its port for "
        "gradients, and its speed."
    )


def test_a_socket_that_is_writable_again_or_a_new_process_of_the_shard_ends_the_wait() -> None:
    worker = contributed(shards=1)
    worker.handle(SendBlocked(0), 1.0)
    weights(worker, 0, 1, ranks=(1, 2), now=2.0)
    assert worker.pending(0), "nothing waits, but the worker still asks whether the socket is writable"
    assert worker.handle(Writable(0), 3.0) == []
    assert not worker.pending(0)
    heartbeat(worker, 0, 1, now=300.0)
    assert of(Failed, worker.handle(Tick(), 310.0)) == []
    pull(worker, 0)
    contribute(worker, 1)
    worker.handle(SendBlocked(0), 311.0)
    welcome(worker, 0, 1, now=340.0, incarnation=6)
    worker.handle(SendBlocked(0), 340.0)
    heartbeat(worker, 0, 1, now=630.0, incarnation=6)
    assert of(Failed, worker.handle(Tick(), 639.9)) == []
    assert len(of(Failed, worker.handle(Tick(), 640.0))) == 1


def test_a_long_wait_is_logged_with_the_version_of_each_shard() -> None:
    worker = contributed()
    heartbeat(worker, 0, 0, incarnation=6)
    pull(worker, 0)
    (log,) = of(Log, worker.handle(Tick(), 11.0))
    where = "shard 0 has not answered our HELLO, shard 1 at 0 (heard 11.0 s ago)"
    assert log.text == f"waiting for a version above 0: {where}"
