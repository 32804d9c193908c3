"""Reads traces as Perfetto reads them."""

from collections import defaultdict
from typing import Any

Event = dict[str, Any]


def assert_valid(events: list[Event]) -> None:
    """Assert what Perfetto needs: times from 0, nested slices in a track, and arrows with both ends in slices."""
    slices: defaultdict[int, list[Event]] = defaultdict(list)
    arrows: defaultdict[str, dict[str, Event]] = defaultdict(dict)
    tracks = set()
    for event in events:
        assert set(event) >= {"ph", "pid", "tid", "name"}
        if event["ph"] == "M":
            tracks.add(event["pid"])
            continue
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] > 0
            slices[event["pid"]].append(event)
        else:
            assert event["ph"] not in arrows[event["id"]]
            arrows[event["id"]][event["ph"]] = event
    assert tracks == set(slices)
    for each in slices.values():
        ends: list[float] = []
        for event in sorted(each, key=lambda event: (event["ts"], -event["dur"])):
            while ends and ends[-1] <= event["ts"] + 1e-6:
                ends.pop()
            assert not ends or event["ts"] + event["dur"] <= ends[-1] + 0.01
            ends.append(event["ts"] + event["dur"])
    for arrow in arrows.values():
        assert set(arrow) == {"s", "f"}
        assert arrow["s"]["ts"] <= arrow["f"]["ts"]
        for event in arrow.values():
            assert any(one["ts"] <= event["ts"] <= one["ts"] + one["dur"] for one in slices[event["pid"]])
