"""A failed assertion lists the events that led to it."""

import pytest
from support import worker_rig
from support.shard_rig import make_version, opened, push

from zmqrl.ps.shard.events import Tick
from zmqrl.ps.story import EVENTS, BrokenInvariant, Story
from zmqrl.ps.worker.events import Contributed


def test_a_failed_assertion_of_a_shard_lists_the_events_of_its_version_and_rank() -> None:
    shard = opened()
    make_version(shard, 0, 1, now=1.0)
    push(shard, 2, 2.0, version=0)
    push(shard, 0, 3.0)
    shard.contributions.held[1] = None
    with pytest.raises(BrokenInvariant) as raised:
        shard.handle(Tick(), 4.0)
    what, *events = str(raised.value).splitlines()
    assert what == "shard 1 at version 1, Tick: the quorum is complete but the version is open. The last events:"
    assert [line.split(",")[0].strip() for line in events if "Updated" in line] == [
        "1.000 s Updated: Record(generation=1"
    ]
    assert "version=1, rank=0" in events[-1]
    assert not any("version=0, rank=2" in line for line in events), "another version, and no rank to blame"
    assert isinstance(raised.value.__cause__, AssertionError)


def test_a_failed_assertion_of_a_shard_names_the_rank_whose_contribution_caused_it() -> None:
    shard = opened()
    make_version(shard, 0, 1)
    push(shard, 2, 1.0, version=0)
    shard.stop, shard.state = 5, "ended"
    with pytest.raises(BrokenInvariant, match="GradientArrived: ended at the wrong version") as raised:
        push(shard, 2, 2.0)
    events = str(raised.value).splitlines()[1:]
    assert sum("version=0, rank=2" in line for line in events) == 1
    assert not any("version=0, rank=1" in line for line in events)
    assert "payload 2" not in str(raised.value)


def test_a_failed_assertion_of_a_worker_lists_the_events_of_the_shard() -> None:
    worker = worker_rig.contributed()
    worker_rig.weights(worker, 1, 1)
    worker.shards[0].payloads[7] = worker.shards[0].payloads[0]
    with pytest.raises(BrokenInvariant) as raised:
        worker_rig.heartbeat(worker, 0, 0, now=5.0)
    what, *events = str(raised.value).splitlines()
    assert what == "worker 3, PublicationArrived: a slice of shard 0 is too new. The last events:"
    assert [line.split()[2].split("(")[0] for line in events] == [
        "ControlArrived:",
        "Pulling",
        "PublicationArrived:",
        "Contributed",
        "PublicationArrived:",
    ]
    assert not any("shard=1" in line for line in events)


def test_a_story_keeps_only_the_last_events() -> None:
    story = Story()
    for version in range(1000):
        story.add(float(version), Contributed, Contributed(1, (version,)))
    what, *events = str(story.broken("here", AssertionError())).splitlines()
    assert what == "here: an assertion failed. The last events:"
    assert len(events) == EVENTS
    assert events[-1].strip() == "999.000 s Contributed(generation=1, versions=(999,), elapsed=0)"
