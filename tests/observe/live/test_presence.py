"""The processes of a live run, as other terminals, the live panel and Prometheus show them."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.observe.live.presence import EXTERNAL, HostLine, Presence, State, by_host
from zmqrl.process_id import EVALUATOR, shard_id, worker_id

PRESENCES = st.builds(
    Presence,
    process=st.one_of(st.builds(shard_id, st.integers(0, 99)), st.builds(worker_id, st.integers(0, 99))),
    host=st.sampled_from(["h1", "h2", EXTERNAL]),
    state=st.sampled_from(get_args(State)),
    for_s=st.floats(0, 1e6),
    restarts=st.integers(0, 9),
)


@given(PRESENCES)
def test_a_presence_is_read_as_it_was_written(presence: Presence) -> None:
    assert Presence.from_json(json.loads(json.dumps(presence.to_json()))) == presence


@pytest.mark.parametrize(
    "damaged", [{}, {"presence": "asleep"}, {"presence": []}, {"for_s": "x"}, {"name": "worker"}, {"restarts": None}]
)
def test_a_damaged_presence_is_refused(damaged: dict[str, Any]) -> None:
    whole = Presence(process=worker_id(1), host="h1", state="present").to_json()
    with pytest.raises((KeyError, TypeError, ValueError)):
        Presence.from_json(whole | damaged if damaged else damaged)


def test_each_host_has_a_line_with_its_processes_and_what_is_wrong_with_them() -> None:
    workers: dict[int, State] = {0: "present", 1: "present", 2: "awaited", 3: "lost", 4: "awaited", 5: "open"}
    presences = [
        Presence(process=shard_id(0), host="h1", state="present"),
        *(
            Presence(
                process=worker_id(rank),
                host=EXTERNAL if rank == 5 else "h2" if rank > 1 else "h1",
                state=state,
                for_s=float(rank),
            )
            for rank, state in workers.items()
        ),
        Presence(process=EVALUATOR, host="h3", state="unreachable", for_s=22.4),
    ]
    assert by_host(presences) == [
        HostLine(host="h1", processes="shard-0,worker-0,worker-1", remarks=""),
        HostLine(
            host="h2",
            processes="worker-2..4",
            remarks="worker-2,worker-4: no contribution for 4 s; worker-3: lost 3 s ago",
        ),
        HostLine(host=EXTERNAL, processes="worker-5", remarks="worker-5: open for an external worker"),
        HostLine(host="h3", processes="evaluator-0", remarks="evaluator-0: its host has been unreachable for 22 s"),
    ]


@given(st.lists(PRESENCES, max_size=30))
def test_a_line_has_no_remarks_exactly_if_all_processes_of_its_host_are_present(presences: list[Presence]) -> None:
    lines = {line.host: line.remarks for line in by_host(presences)}
    assert lines.keys() == {each.host for each in presences}
    for host, remarks in lines.items():
        assert bool(remarks) == any(each.state != "present" for each in presences if each.host == host)
