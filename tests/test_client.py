"""The state machine of a worker's side of the wire, one behaviour a test."""

from dataclasses import replace
from typing import Any, TypeVar

import pytest

from zmqrl.ps import messages as m
from zmqrl.ps.client import Client, Timing
from zmqrl.ps.client_events import (
    Action,
    Assembled,
    Contributed,
    ControlArrived,
    Ended,
    Failed,
    Leaving,
    Log,
    PublicationArrived,
    Pulling,
    Release,
    SendBlocked,
    SendControl,
    SendGradient,
    Tick,
    Writable,
)

T = TypeVar("T")

RANK = 3
ABOUT: dict[str, Any] = {"run": "run", "incarnation": 5, "generation": 1, "view": 1}
RECORD: dict[str, Any] = {"quorum": 2, "members": (1, 2, RANK), "ranks": (), "codec": "f32", "crc32": 0}


def of(kind: type[T], actions: list[Action]) -> list[T]:
    return [action for action in actions if isinstance(action, kind)]


def sent(kind: type[T], actions: list[Action]) -> list[tuple[int, T]]:
    """Control messages of one kind, each with the shard it goes to."""
    return [(a.shard, a.message) for a in of(SendControl, actions) if isinstance(a.message, kind)]


def snapshots(actions: list[Action]) -> list[tuple[int, int | None]]:
    return [(shard, request.version) for shard, request in sent(m.SnapshotRequest, actions)]


def pushed(actions: list[Action]) -> list[tuple[int, int, int]]:
    """Shard, version and attempt of the slices sent."""
    return [(action.shard, action.header.version, action.header.attempt) for action in of(SendGradient, actions)]


def weights(
    client: Client, shard: int, version: int, ranks: tuple[int, ...] = (), now: float = 0.0, **fields: Any
) -> list[Action]:
    message = m.Weights(shard=shard, version=version, **ABOUT | RECORD | {"ranks": ranks} | fields)
    return client.handle(PublicationArrived(shard, message, f"slice {shard} of {version}"), now)


def snapshot(client: Client, shard: int, version: int, now: float = 0.0, **fields: Any) -> list[Action]:
    message = m.Snapshot(shard=shard, version=version, **ABOUT | RECORD | fields)
    return client.handle(ControlArrived(shard, message, f"slice {shard} of {version}"), now)


def heartbeat(client: Client, shard: int, version: int, now: float = 0.0, **fields: Any) -> list[Action]:
    message = m.Heartbeat(shard=shard, version=version, **ABOUT | {"held": (), "published": True} | fields)
    return client.handle(PublicationArrived(shard, message), now)


def need(client: Client, shard: int, version: int, held: tuple[int, ...] = (), now: float = 0.0) -> list[Action]:
    return client.handle(PublicationArrived(shard, m.Need(shard=shard, version=version, held=held, **ABOUT)), now)


def bye(client: Client, shard: int, version: int, **fields: Any) -> list[Action]:
    about = {key: value for key, value in ABOUT.items() if key != "view"} | fields
    return client.handle(PublicationArrived(shard, m.Bye(shard=shard, version=version, **about)), 0.0)


def welcome(client: Client, shard: int, version: int = 0, now: float = 0.0, **fields: Any) -> list[Action]:
    about = ABOUT | {"quorum": 2, "members": (1, 2, RANK), "codec": "f32", "state": "open", "published": False} | fields
    return client.handle(ControlArrived(shard, m.Welcome(shard=shard, version=version, **about)), now)


def new(shards: int = 2) -> Client:
    return Client(
        run="run",
        layout="layout",
        shards=shards,
        rank=RANK,
        incarnation=9,
        codec="f32",
        host="h",
        pid=1,
        now=0.0,
        timing=Timing(),
    )


def welcomed(shards: int = 2) -> Client:
    """A worker that every shard, at version 0, has welcomed."""
    client = new(shards)
    client.handle(Tick(), 0.0)
    for shard in range(shards):
        welcome(client, shard)
    return client


def computing(version: int = 0, shards: int = 2) -> Client:
    """A worker that has the weights of ``version`` and computes a gradient on them."""
    client = welcomed(shards)
    client.handle(Pulling(version - 1), 0.0)
    actions = [action for shard in range(shards) for action in weights(client, shard, version)]
    assert [weights.version for weights in of(Assembled, actions)] == [version]
    return client


def contributed(version: int = 0, shards: int = 2) -> Client:
    """A worker that has pushed a gradient of ``version`` to every shard."""
    client = computing(version, shards)
    client.handle(Contributed(1, version), 0.0)
    return client


# joining


def test_hello_is_said_to_every_shard_and_said_again_until_it_is_welcomed() -> None:
    client = new()
    assert [shard for shard, _ in sent(m.Hello, client.handle(Tick(), 0.0))] == [0, 1]
    assert sent(m.Hello, client.handle(Tick(), 0.5)) == []
    welcome(client, 0)
    ((shard, hello),) = sent(m.Hello, client.handle(Tick(), 1.0))
    assert shard == 1
    assert (hello.role, hello.rank, hello.incarnation, hello.layout, hello.secret) == ("worker", 3, 9, "layout", "")


def test_weights_that_were_published_before_we_came_are_asked_for() -> None:
    client = new()
    assert snapshots(welcome(client, 0, 7, published=True)) == [(0, None)]
    assert snapshots(welcome(client, 1, 7, published=False)) == []


@pytest.mark.parametrize("code", ["run", "layout", "rank", "replaced", "secret"])
def test_a_refusal_ends_the_worker_with_the_shards_reason(code: Any) -> None:
    run = "other" if code == "run" else "run"
    refuse = m.Refuse(run=run, code=code, reason="this is why.")
    (failed,) = of(Failed, new().handle(ControlArrived(1, refuse), 0.0))
    assert failed.reason == "shard 1 refuses worker 3: this is why."


def test_messages_of_another_run_are_ignored() -> None:
    client = computing()
    assert of(Log, weights(client, 0, 9, run="other"))
    assert client.links[0].version == 0


# weights


def test_a_version_is_assembled_when_all_its_slices_are_here() -> None:
    client = welcomed()
    client.handle(Pulling(-1), 0.0)
    assert of(Assembled, weights(client, 1, 0)) == []
    assert of(Assembled, weights(client, 0, 0)) == [Assembled(1, 0, (("f32", "slice 0 of 0"), ("f32", "slice 1 of 0")))]


def test_slices_that_came_before_the_pull_are_assembled_at_once() -> None:
    client = contributed()
    weights(client, 0, 1)
    weights(client, 1, 1)
    assert [a.version for a in of(Assembled, client.handle(Pulling(0), 0.0))] == [1]


def test_one_pull_is_answered_once() -> None:
    client = computing()
    assert of(Assembled, [*weights(client, 0, 1), *weights(client, 1, 1)]) == []


def test_slices_of_different_versions_are_never_assembled() -> None:
    client = contributed()
    client.handle(Pulling(0), 0.0)
    assert of(Assembled, [*weights(client, 0, 1), *client.handle(Tick(), 100.0)]) == []


def test_slices_of_different_generations_are_never_assembled() -> None:
    client = contributed()
    client.handle(Pulling(0), 0.0)
    weights(client, 0, 1, generation=2)
    assert of(Assembled, weights(client, 1, 1)) == []
    assert [a.generation for a in of(Assembled, weights(client, 1, 1, generation=2))] == [2]


def test_nothing_is_assembled_before_every_shard_has_welcomed_us() -> None:
    client = new()
    client.handle(Pulling(-1), 0.0)
    welcome(client, 0)
    assert of(Assembled, [*weights(client, 0, 0), *weights(client, 1, 0)]) == []
    assert [a.version for a in of(Assembled, welcome(client, 1))] == [0]


def test_a_version_that_was_had_is_assembled_again_only_when_it_is_asked_for() -> None:
    client = computing(4)
    assert of(Assembled, client.handle(Pulling(4), 0.0)) == []
    assert [a.version for a in of(Assembled, client.handle(Pulling(3), 0.0))] == [4]


def test_a_lost_publication_is_noticed_by_the_heartbeat_and_asked_for_once() -> None:
    client = contributed()
    assert snapshots(heartbeat(client, 0, 1, now=1.0)) == [(0, None)]
    assert snapshots(heartbeat(client, 0, 1, now=2.0)) == []
    assert snapshots(heartbeat(client, 0, 1, now=3.1)) == [(0, None)]
    client.handle(Pulling(0), 3.2)
    weights(client, 1, 1, now=3.2)
    assert [a.version for a in of(Assembled, snapshot(client, 0, 1, now=3.3))] == [1]


def test_nothing_is_asked_for_that_was_not_published() -> None:
    client = welcomed()
    assert snapshots(client.handle(Pulling(-1), 0.0)) == []
    assert snapshots(heartbeat(client, 0, 0, published=False)) == []


def test_requests_without_an_answer_back_off_until_one_comes() -> None:
    client = contributed()
    asked = [at for at in range(100) if snapshots(heartbeat(client, 0, 1, now=float(at)))]
    assert asked == [0, 2, 6, 14, 30, 60, 90]
    snapshot(client, 0, 1)
    heartbeat(client, 0, 2, now=200.0)
    assert snapshots(heartbeat(client, 0, 2, now=202.0)) == [(0, None)]


def test_a_missing_snapshot_is_asked_for_again_later() -> None:
    client = contributed()
    heartbeat(client, 0, 1, now=1.0)
    client.handle(ControlArrived(0, m.Missing(run="run", shard=0, version=1)), 1.1)
    assert snapshots(heartbeat(client, 0, 1, now=1.2)) == []
    assert snapshots(heartbeat(client, 0, 1, now=3.0)) == [(0, None)]


def test_an_older_snapshot_does_not_take_a_shard_back() -> None:
    client = contributed()
    weights(client, 0, 1)
    weights(client, 0, 2)
    snapshot(client, 0, 1)
    assert client.links[0].version == 2


def test_payloads_are_bounded_when_we_are_cut_off_from_one_shard() -> None:
    client = contributed()
    for version in range(1, 200):
        weights(client, 1, version)
        assert len(client.links[1].payloads) <= 2
    assert [sorted(link.payloads) for link in client.links] == [[0], [198, 199]]


def test_payloads_that_no_shard_needs_help_with_are_dropped() -> None:
    client = contributed()
    for version in (1, 2, 3):
        weights(client, 0, version)
        weights(client, 1, version)
    assert [sorted(link.payloads) for link in client.links] == [[3], [3]]


# contributions


def test_a_contribution_goes_to_every_shard_and_names_what_it_was_computed_on() -> None:
    client = computing()
    first, second = of(SendGradient, client.handle(Contributed(1, 0), 0.0))
    assert first.header == m.Gradient(
        run="run",
        layout="layout",
        generation=1,
        view=1,
        shard=0,
        version=0,
        rank=3,
        incarnation=9,
        attempt=0,
        codec="f32",
    )
    assert second.header == replace(first.header, shard=1)
    assert client.tally.sent == 2


def test_a_slice_that_a_shard_has_passed_is_skipped_there_and_still_pushed_to_the_others() -> None:
    client = computing()
    weights(client, 0, 1)
    assert pushed(client.handle(Contributed(1, 0), 0.0)) == [(1, 0, 0)]
    assert (client.tally.sent, client.tally.skipped) == (1, 1)
    assert not client.passed(0)
    weights(client, 1, 1)
    assert client.passed(0)


def test_work_that_every_shard_has_passed_is_skipped_and_released() -> None:
    client = computing()
    weights(client, 0, 1)
    weights(client, 1, 1)
    assert client.handle(Contributed(1, 0), 0.0) == [Release()]
    assert client.tally.skipped == 2


def test_work_of_a_generation_that_was_rolled_back_is_skipped_and_released() -> None:
    client = computing()
    weights(client, 0, 0, generation=2)
    weights(client, 1, 0, generation=2)
    assert client.handle(Contributed(1, 0), 0.0) == [Release()]


def test_a_blocked_push_is_sent_when_the_socket_is_writable() -> None:
    client = contributed()
    client.handle(SendBlocked(1), 0.0)
    assert (client.pending(0), client.pending(1), client.tally.sent) == (False, True, 1)
    assert pushed(client.handle(Writable(1), 0.0)) == [(1, 0, 0)]
    assert (client.pending(1), client.tally.sent, client.tally.resent) == (False, 2, 0)


def test_a_blocked_push_that_is_late_by_then_is_skipped() -> None:
    client = contributed()
    client.handle(SendBlocked(1), 0.0)
    weights(client, 1, 1, ranks=(1, 2))
    assert client.handle(Writable(1), 0.0) == []
    assert (client.tally.sent, client.tally.skipped, client.tally.unused) == (1, 1, 0)


def test_a_push_waits_for_a_shard_that_has_not_welcomed_us() -> None:
    client = computing()
    heartbeat(client, 0, 0, incarnation=6)
    assert pushed(client.handle(Contributed(1, 0), 0.0)) == [(1, 0, 0)]
    assert not client.pending(0)
    assert pushed(welcome(client, 0, incarnation=6)) == [(0, 0, 0)]


def test_need_that_does_not_hold_our_slice_makes_us_send_it_again() -> None:
    client = contributed()
    assert pushed(need(client, 0, 0, held=(1, 2))) == [(0, 0, 1)]
    assert pushed(need(client, 0, 0)) == [(0, 0, 2)]
    assert (client.tally.sent, client.tally.resent) == (2, 2)


@pytest.mark.parametrize(("version", "held"), [(0, (3,)), (0, (1, 3)), (1, ())])
def test_need_that_holds_our_slice_or_is_for_another_version_sends_nothing(version: int, held: Any) -> None:
    assert pushed(need(contributed(), 0, version, held)) == []


def test_a_resend_that_blocks_is_a_resend_when_it_goes() -> None:
    client = contributed()
    need(client, 0, 0)
    client.handle(SendBlocked(0), 0.0)
    assert (client.tally.sent, client.tally.resent) == (2, 0)
    assert pushed(client.handle(Writable(0), 0.0)) == [(0, 0, 1)]
    assert (client.tally.sent, client.tally.resent) == (2, 1)


def test_a_resend_names_the_view_of_the_shard_by_then() -> None:
    client = contributed()
    heartbeat(client, 0, 0, view=2)
    (action,) = of(SendGradient, client.handle(PublicationArrived(0, need_message(view=2)), 0.0))
    assert action.header.view == 2


def need_message(**fields: Any) -> m.Need:
    about: dict[str, Any] = {"shard": 0, "version": 0, "held": ()}
    return m.Need(**about | ABOUT | fields)


def test_the_record_of_a_version_tells_what_became_of_our_slice() -> None:
    client = contributed()
    weights(client, 0, 1, ranks=(1, 3))
    assert of(Release, weights(client, 1, 1, ranks=(1, 2))) == [Release()]
    assert (client.tally.used, client.tally.unused, client.tally.unknown) == (1, 1, 0)


def test_a_lost_record_makes_the_outcome_unknown() -> None:
    client = contributed()
    heartbeat(client, 0, 1)
    assert of(Release, weights(client, 1, 2, ranks=(1, 2))) == [Release()]
    assert client.tally.unknown == 2


def test_a_snapshot_carries_the_record_too() -> None:
    client = contributed(shards=1)
    assert Release() in snapshot(client, 0, 1, ranks=(3,))
    assert client.tally.used == 1


def test_the_gradient_is_released_once_when_the_last_shard_is_past_it() -> None:
    client = contributed()
    assert of(Release, weights(client, 1, 1)) == []
    assert of(Release, weights(client, 0, 1)) == [Release()]
    assert of(Release, [*weights(client, 0, 2), *weights(client, 1, 2)]) == []


def test_a_rollback_releases_the_gradient_and_leaves_its_outcome_unknown() -> None:
    client = contributed()
    client.handle(SendBlocked(1), 0.0)
    assert of(Release, weights(client, 0, 0, generation=2)) == []
    assert of(Release, weights(client, 1, 0, generation=2)) == [Release()]
    assert (client.tally.unknown, client.tally.skipped) == (1, 1)


def test_every_slice_is_accounted_for_also_when_work_is_contributed_twice() -> None:
    client = contributed()
    assert of(Release, client.handle(Contributed(1, 0), 0.0)) == []
    weights(client, 0, 1, ranks=(3,))
    weights(client, 1, 1, ranks=(3,))
    assert (client.tally.sent, client.tally.unknown, client.tally.used) == (4, 2, 2)


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
    assert of(Assembled, [action for _ in range(4) for action in need(client, 0, 1)]) == []


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
