"""The state machine of a worker's side of the wire: repair, restarts, rollback, the end; one behaviour a test."""

from client_rig import (
    bye,
    contributed,
    heartbeat,
    need,
    need_message,
    new,
    of,
    pushed,
    sent,
    snapshot,
    snapshots,
    weights,
    welcome,
    welcomed,
)

from zmqrl.ps import messages as m
from zmqrl.ps.client import Client
from zmqrl.ps.client_events import (
    Assembled,
    Contributed,
    ControlArrived,
    Ended,
    Failed,
    HandshakeFailed,
    Leaving,
    Log,
    PublicationArrived,
    Pulling,
    Release,
    SendControl,
    Tick,
)

# repair: a version that is open at some shards only, because a contributor died in between


def late_worker() -> Client:
    """An idle worker that has not contributed to version 1, which shard 1 has made into version 2."""
    client = contributed()
    for shard in (0, 1):
        weights(client, shard, 1)
    weights(client, 1, 2)
    client.handle(Pulling(0), 0.0)
    return client


def test_an_idle_worker_helps_a_shard_that_asks_again_and_again() -> None:
    client = late_worker()
    assert of(Assembled, need(client, 0, 1)) == []
    assert [a.version for a in of(Assembled, need(client, 0, 1))] == [1]
    assert pushed(client.handle(Contributed(1, 1), 0.0)) == [(0, 1, 0)]


def test_a_new_worker_gets_the_version_before_from_the_shards_that_are_ahead() -> None:
    client = new()
    client.handle(Tick(), 0.0)
    welcome(client, 0, 1, published=True)
    welcome(client, 1, 2, published=True)
    snapshot(client, 0, 1)
    snapshot(client, 1, 2)
    client.handle(Pulling(-1), 0.0)
    need(client, 0, 1)
    assert snapshots(need(client, 0, 1)) == [(1, 1)]
    assert [a.version for a in of(Assembled, snapshot(client, 1, 1))] == [1]


def test_who_has_contributed_does_not_help_but_sends_again() -> None:
    client = contributed()
    weights(client, 1, 1)
    client.handle(Pulling(0), 0.0)
    actions = [*need(client, 0, 0), *need(client, 0, 0)]
    assert of(Assembled, actions) == []
    assert pushed(actions) == [(0, 0, 1), (0, 0, 2)]


def test_who_is_held_already_does_not_help() -> None:
    client = late_worker()
    assert of(Assembled, [action for _ in range(4) for action in need(client, 0, 1, held=(3,))]) == []


def test_who_is_held_at_one_stuck_shard_helps_the_other() -> None:
    client = contributed(shards=3)
    for shard in (0, 1, 2):
        weights(client, shard, 1)
    weights(client, 2, 2)
    client.handle(Pulling(0), 0.0)
    actions = []
    for _ in range(2):
        actions += [*need(client, 0, 1, held=(3,)), *need(client, 1, 1, held=(1,))]
    assert [a.version for a in of(Assembled, actions)] == [1]


def test_who_is_further_behind_than_one_version_waits_for_news() -> None:
    client = late_worker()
    weights(client, 1, 3)
    assert [action for _ in range(4) for action in need(client, 0, 1)] == []


def test_need_of_a_version_that_is_past_asks_for_no_help() -> None:
    client = late_worker()
    assert [action for _ in range(4) for action in need(client, 0, 0)] == []


def test_news_of_a_shard_that_got_on_makes_us_stop_helping() -> None:
    client = late_worker()
    need(client, 0, 1)
    assert [a.version for a in of(Assembled, weights(client, 0, 2))] == [2]


# shards that restart and roll back


def test_a_shard_that_restarted_is_greeted_anew_and_asked_for_nothing_before() -> None:
    client = contributed()
    actions = heartbeat(client, 0, 0, incarnation=6)
    assert [shard for shard, _ in sent(m.Hello, actions)] == [0]
    assert of(Log, actions)[0].text == "shard 0 has restarted"
    assert snapshots(heartbeat(client, 0, 1, incarnation=6)) == []
    assert snapshots(welcome(client, 0, 1, incarnation=6, published=True)) == [(0, None)]


def test_a_shard_that_restarted_gets_the_slice_it_lost_when_it_asks() -> None:
    client = contributed()
    heartbeat(client, 0, 0, incarnation=6)
    welcome(client, 0, incarnation=6)
    message = need_message(incarnation=6)
    assert pushed(client.handle(PublicationArrived(0, message), 0.0)) == [(0, 0, 1)]


def test_what_an_older_process_of_a_shard_still_says_is_ignored() -> None:
    client = contributed()
    heartbeat(client, 0, 0, incarnation=6)
    for late in (weights(client, 0, 5), snapshot(client, 0, 5), welcome(client, 0, 5), bye(client, 0, 5)):
        assert of(SendControl, late) == []
    assert (client.links[0].version, client.links[0].welcomed, client.links[0].final) == (0, False, None)


def test_what_a_shard_said_before_a_rollback_is_ignored() -> None:
    client = contributed(7)
    weights(client, 0, 5, generation=2)
    for late in (weights(client, 0, 8), snapshot(client, 0, 8), welcome(client, 0, 8), bye(client, 0, 8)):
        assert late == []
    assert (client.links[0].version, client.links[0].final) == (5, None)


def test_after_a_rollback_lower_versions_are_new() -> None:
    client = contributed(7)
    client.handle(Pulling(7), 0.0)
    weights(client, 0, 5, generation=2)
    assert [(a.generation, a.version) for a in of(Assembled, weights(client, 1, 5, generation=2))] == [(2, 5)]
    assert of(Assembled, client.handle(Pulling(5), 0.0)) == []


def test_a_welcome_without_state_welcomes_to_nothing() -> None:
    client = new()
    welcome(client, 0, state="empty")
    assert not client.links[0].welcomed


# the end


def test_the_run_ends_when_every_shard_says_bye_at_the_same_version() -> None:
    client = contributed()
    assert of(Ended, bye(client, 0, 1)) == []
    assert of(Ended, bye(client, 1, 1)) == [Ended(1)]
    assert of(Ended, bye(client, 1, 1)) == []


def test_byes_at_different_versions_end_nothing() -> None:
    client = contributed()
    assert of(Ended, [*bye(client, 0, 1), *bye(client, 1, 2)]) == []
    assert of(Ended, bye(client, 0, 2)) == [Ended(2)]


def test_a_stop_that_was_taken_back_takes_its_bye_back() -> None:
    client = contributed()
    bye(client, 0, 1)
    heartbeat(client, 0, 1)
    assert of(Ended, bye(client, 1, 1)) == []


def test_bye_releases_the_gradient_and_nothing_is_assembled_after_the_end() -> None:
    client = contributed()
    assert of(Release, [*bye(client, 0, 1), *bye(client, 1, 1)]) == [Release()]
    client.handle(Pulling(0), 0.0)
    assert of(Assembled, [*weights(client, 0, 1), *weights(client, 1, 1)]) == []


def test_no_work_begins_that_a_shard_will_not_take() -> None:
    client = contributed()
    weights(client, 0, 1)
    weights(client, 1, 1)
    bye(client, 0, 1)
    assert of(Assembled, client.handle(Pulling(0), 0.0)) == []
    assert [a.version for a in of(Assembled, heartbeat(client, 0, 1))] == [1]


def test_a_shard_that_ended_ahead_of_a_stuck_one_does_not_keep_us_from_helping() -> None:
    client = contributed()
    for shard in (0, 1):
        weights(client, shard, 1)
    bye(client, 1, 2)
    client.handle(Pulling(0), 0.0)
    need(client, 0, 1)
    actions = need(client, 0, 1)
    assert [a.version for a in of(Assembled, actions)] == [1]


def test_who_leaves_says_so_to_every_shard() -> None:
    leave = m.Leave(run="run", rank=3, incarnation=9)
    assert sent(m.Leave, welcomed().handle(Leaving(), 0.0)) == [(0, leave), (1, leave)]


# time


def test_pings_tell_progress_and_the_newest_version_once_a_second() -> None:
    client = contributed(4)
    ((_, ping), (_, other)) = sent(m.Ping, client.handle(Tick(), 1.0))
    assert ping == m.Ping(run="run", rank=3, incarnation=9, generation=1, version=4, progress=2, sent_us=1_000_000)
    assert other == ping
    assert sent(m.Ping, client.handle(Tick(), 1.5)) == []


def test_a_shard_that_says_nothing_for_the_lease_ends_the_worker() -> None:
    client = contributed()
    heartbeat(client, 0, 0, now=30.0)
    assert of(Failed, client.handle(Tick(), 59.9)) == []
    (failed,) = of(Failed, client.handle(Tick(), 60.0))
    assert failed.reason == "no word from shard 1 for 60 s: is it still running?"


def test_a_failed_handshake_is_told_at_once_and_named_when_the_worker_gives_up() -> None:
    client = new()
    failed = client.handle(HandshakeFailed(1), 2.0)
    assert [type(action) for action in failed] == [Log]
    assert client.handle(HandshakeFailed(1), 3.0) == [], "told already"
    assert "the handshake with shard 1 failed" in client.where(3.0)
    heartbeat(client, 0, 0, now=50.0)
    (failure,) = of(Failed, client.handle(Tick(), 60.0))
    assert failure.reason.startswith("no word from shard 1 for 60 s: the handshake with shard 1 failed")


def test_a_handshake_that_failed_before_the_shard_was_heard_is_forgotten() -> None:
    client = new()
    client.handle(HandshakeFailed(1), 2.0)
    for shard in range(2):
        heartbeat(client, shard, 0, now=3.0)
    assert "handshake" not in client.where(3.0)
    (failure,) = of(Failed, client.handle(Tick(), 70.0))
    assert failure.reason.endswith("is it still running?")


def test_any_word_renews_the_lease() -> None:
    client = contributed(shards=1)
    client.handle(ControlArrived(0, m.Pong(run="run", shard=0, sent_us=0, received_us=0, answered_us=0)), 50.0)
    assert of(Failed, client.handle(Tick(), 100.0)) == []


def test_a_long_wait_says_where_each_shard_stands() -> None:
    client = contributed()
    heartbeat(client, 0, 0, incarnation=6)
    client.handle(Pulling(0), 0.0)
    (log,) = of(Log, client.handle(Tick(), 11.0))
    assert log.text == ("waiting for a version above 0: shard 0 has not welcomed us, shard 1 at 0 (heard 11.0 s ago)")
