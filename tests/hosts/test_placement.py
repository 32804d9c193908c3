"""The placement of processes on hosts: by hand if the hosts file says so, otherwise evenly, and always complete."""

import dataclasses
import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import ROOT

from zmqrl.errors import UsageError
from zmqrl.hosts.inventory import Host, read_hosts
from zmqrl.hosts.placement import Placement, place
from zmqrl.process_id import EVALUATOR, RECORDER, worker_id

EXAMPLES = ROOT / "launch" / "hosts"


def placed(
    hosts: str | tuple[Host, ...],
    cores: int | list[int],
    *,
    shards: int = 1,
    workers: int = 2,
    evaluator: bool = False,
    recorder: bool = False,
) -> Placement:
    hosts = read_hosts(hosts) if isinstance(hosts, str) else hosts
    each = [cores] * len(hosts) if isinstance(cores, int) else cores
    by_name = {host.name: number for host, number in zip(hosts, each, strict=True)}
    return place(hosts, by_name, shards=shards, workers=workers, evaluator=evaluator, recorder=recorder)


def numbers(placement: Placement, role: str) -> list[int]:
    """The number of processes of ``role`` on each host."""
    return [sum(each.role == role for each in placement.processes_on(host)) for host in placement.hosts]


def names_on(placement: Placement, host: str) -> list[str]:
    return list(map(str, placement.processes_on(host)))


def test_shards_go_to_hosts_in_turn_and_workers_go_to_free_cores() -> None:
    placement = placed("a,b", 4, shards=1, workers=7)
    assert names_on(placement, "a") == ["shard-0", "worker-0", "worker-1", "worker-2"]
    assert names_on(placement, "b") == ["worker-3", "worker-4", "worker-5", "worker-6"]
    assert numbers(placed("a,b,c", 4, shards=5), "shard") == [2, 2, 1]


def test_a_host_with_more_cores_takes_more_workers() -> None:
    assert numbers(placed("a,b", [3, 9], shards=0, workers=8), "worker") == [2, 6]


def test_a_host_whose_only_core_has_a_shard_still_takes_workers() -> None:
    assert numbers(placed("a", 1, workers=3), "worker") == [3]


def test_slots_override_the_number_of_cores() -> None:
    assert numbers(placed("a:4,b:2", [2, 64], shards=0, workers=6), "worker") == [4, 2]
    assert numbers(placed("a:4,b:2", [2, 64], shards=0, workers=3), "worker") == [2, 1]
    assert numbers(placed("a:1,b", [64, 2], shards=0, workers=9), "worker") == [1, 8]


def test_evaluator_and_recorder_go_to_hosts_with_the_lowest_load_per_core() -> None:
    placement = placed("a,b,c:0", [4, 4, 1], shards=2, workers=6, evaluator=True, recorder=True)
    assert placement.host_of[EVALUATOR] == "c"
    assert placement.host_of[RECORDER] == "a"


def test_roles_placed_by_hand_run_only_on_the_named_hosts() -> None:
    hosts = (Host(name="a"), Host(name="b", shards=2), Host(name="c", workers=3), Host(name="d", evaluator=True))
    placement = placed(hosts, 2, shards=2, workers=3, evaluator=True)
    assert [names_on(placement, host) for host in "abcd"] == [
        [],
        ["shard-0", "shard-1"],
        ["worker-0", "worker-1", "worker-2"],
        ["evaluator-0"],
    ]


def test_other_roles_are_placed_around_those_placed_by_hand() -> None:
    hosts = (Host(name="a", recorder=True), Host(name="b"))
    placement = placed(hosts, 2, shards=0, workers=3, evaluator=True, recorder=True)
    assert numbers(placement, "worker") == [1, 2]
    assert placement.host_of[RECORDER] == "a"


def test_workers_placed_by_hand_can_exceed_slots_and_cores_without_a_notice() -> None:
    placement = placed((Host(name="a", slots=1, workers=5), Host(name="b")), 2, workers=5)
    assert numbers(placement, "worker") == [5, 0]
    assert placement.notices == ()


def test_a_place_for_an_evaluator_is_ignored_in_a_run_without_one() -> None:
    placement = placed((Host(name="a", evaluator=True, recorder=True),), 2)
    assert set(map(str, placement.host_of)) == {"shard-0", "worker-0", "worker-1"}


@pytest.mark.parametrize(
    ("hosts", "sentence"),
    [
        ((Host(name="a", workers=1), Host(name="b")), "the hosts file places 1 worker, but the run has 4"),
        ((Host(name="a", workers=3), Host(name="b", workers=2)), "the hosts file places 5 workers, but the run has 4"),
        ((Host(name="a", workers=0),), "the hosts file places 0 workers, but the run has 4"),
        ((Host(name="a", shards=3),), "the hosts file places 3 shards, but the run has 2"),
        (
            (Host(name="a", evaluator=True), Host(name="b", evaluator=True)),
            "the hosts file places 2 evaluators, but the run has 1",
        ),
        (
            (Host(name="a", slots=1), Host(name="b", slots=2)),
            "the run has 4 workers, but the hosts have 3 slots: add slots, or use fewer workers",
        ),
        ((Host(name="a", slots=1),), "the hosts have 1 slot:"),
    ],
)
def test_an_error_names_both_numbers_that_do_not_match(hosts: tuple[Host, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        placed(hosts, 8, shards=2, workers=4, evaluator=True)


def test_more_workers_than_cores_are_spread_evenly_with_a_notice() -> None:
    placement = placed("a,b", [2, 4], shards=0, workers=9)
    assert numbers(placement, "worker") == [3, 6]
    assert placement.notices == ("2 hosts of 2 will run more workers than cores, a the most: 3 workers on 2 cores.",)
    assert placed("a,b", [2, 4], shards=2, workers=6).notices == ()
    assert placed("a:9", 2, workers=9).notices == ()


def test_threads_are_the_cores_per_worker_unless_the_host_sets_them() -> None:
    hosts = (Host(name="a", slots=2), Host(name="b", threads=3), Host(name="c", slots=0))
    placement = placed(hosts, [9, 2, 6], shards=1, workers=4, evaluator=True)
    assert numbers(placement, "worker") == [2, 2, 0]
    assert {str(process): threads for process, threads in placement.threads.items()} == {
        "shard-0": 1,
        "worker-0": 4,
        "worker-1": 4,
        "worker-2": 3,
        "worker-3": 3,
        "evaluator-0": 6,
    }


def test_the_table_has_a_line_for_each_role_on_each_host() -> None:
    placement = placed("alice@big:4,b:1,c:0", [8, 2, 2], shards=2, workers=5, evaluator=True)
    assert placement.table().splitlines() == [
        "host       processes     threads each",
        "alice@big  shard-0       1",
        "alice@big  worker-[0-3]  2",
        "b          shard-1       1",
        "b          worker-4      2",
        "c          evaluator-0   2",
    ]
    assert placed("a,b", 4, workers=0).table().splitlines()[-1] == "b     none"


def test_the_examples_can_be_placed() -> None:
    three = placed(read_hosts(str(EXAMPLES / "three.toml")), [16, 2, 2], shards=2, workers=16, recorder=True)
    assert numbers(three, "worker") == [15, 1, 0]
    by_hand = placed(read_hosts(str(EXAMPLES / "by-hand.toml")), 8, shards=2, workers=16, evaluator=True)
    assert numbers(by_hand, "shard") == [1, 1, 0, 0, 0, 0, 0]
    assert numbers(by_hand, "worker") == [0, 0, 4, 4, 4, 4, 0]
    assert by_hand.host_of[EVALUATOR] == "watcher"
    hostfile = placed(read_hosts(str(EXAMPLES / "hostfile")), 8, shards=2, workers=32)
    assert sum(numbers(hostfile, "worker")) == 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """The arguments of place()."""

    hosts: tuple[Host, ...]
    cores: dict[str, int]
    shards: int
    workers: int
    evaluator: bool
    recorder: bool

    def placement(self) -> Placement:
        return place(
            self.hosts,
            self.cores,
            shards=self.shards,
            workers=self.workers,
            evaluator=self.evaluator,
            recorder=self.recorder,
        )

    def names(self) -> list[str]:
        wanted = {"shard": self.shards, "worker": self.workers, "evaluator": self.evaluator, "recorder": self.recorder}
        return [f"{role}-{number}" for role, count in wanted.items() for number in range(count)]


@st.composite
def wishes(draw: st.DrawFn, *, by_hand: bool = True, slots: bool = True) -> Wish:
    """Hosts, and numbers of processes that can be placed on them."""
    count = draw(st.integers(1, 5))

    def some(values: st.SearchStrategy[int], wanted: bool = True) -> list[int | None]:
        return draw(st.lists(st.none() | values, min_size=count, max_size=count)) if wanted else [None] * count

    shards_on, workers_on = some(st.integers(0, 3), by_hand), some(st.integers(0, 4), by_hand)
    slots_of = some(st.integers(0, 6), slots)
    evaluator_at, recorder_at = (draw(st.integers(-1, count - 1)) if by_hand else -1 for _ in range(2))
    named_shards = [n for n in shards_on if n is not None]
    named_workers = [n for n in workers_on if n is not None]
    known_slots = [n for n in slots_of if n is not None]
    most = sum(known_slots) if len(known_slots) == count else 20
    return Wish(
        hosts=tuple(
            Host(
                name=f"h{i}",
                slots=slots_of[i],
                shards=shards_on[i],
                workers=workers_on[i],
                evaluator=i == evaluator_at,
                recorder=i == recorder_at,
            )
            for i in range(count)
        ),
        cores={f"h{i}": draw(st.integers(1, 9)) for i in range(count)},
        shards=sum(named_shards) if named_shards else draw(st.integers(0, 8)),
        workers=sum(named_workers) if named_workers else draw(st.integers(0, most)),
        evaluator=draw(st.booleans()),
        recorder=draw(st.booleans()),
    )


@given(wishes())
def test_every_process_is_placed_once_with_threads_and_consecutive_ranks(wish: Wish) -> None:
    placement = wish.placement()
    assert sorted(map(str, placement.host_of)) == sorted(map(str, placement.threads)) == sorted(wish.names())
    everywhere = [name for host in placement.hosts for name in names_on(placement, host)]
    assert sorted(everywhere) == sorted(wish.names())
    assert min(placement.threads.values(), default=1) >= 1
    for role in ("shard", "worker"):
        in_host_order = [name for name in everywhere if name.startswith(role)]
        assert in_host_order == [f"{role}-{number}" for number in range(len(in_host_order))]


@given(wishes())
def test_the_same_request_gives_the_same_placement(wish: Wish) -> None:
    again = dataclasses.replace(wish, cores=dict(reversed(wish.cores.items())))
    assert wish.placement() == again.placement()


@given(wishes())
def test_numbers_set_by_hand_are_respected(wish: Wish) -> None:
    placement = wish.placement()
    for role, by_hand in (("shard", [h.shards for h in wish.hosts]), ("worker", [h.workers for h in wish.hosts])):
        if any(number is not None for number in by_hand):
            assert numbers(placement, role) == [number or 0 for number in by_hand]
    for role, here in (
        ("evaluator", [h.evaluator for h in wish.hosts]),
        ("recorder", [h.recorder for h in wish.hosts]),
    ):
        if any(here) and f"{role}-0" in wish.names():
            assert numbers(placement, role) == here


@given(wishes(by_hand=False))
def test_slots_are_never_exceeded(wish: Wish) -> None:
    for host, workers in zip(wish.hosts, numbers(wish.placement(), "worker"), strict=True):
        assert host.slots is None or workers <= host.slots


@given(wishes(by_hand=False))
def test_shards_run_on_distinct_hosts_if_there_are_enough(wish: Wish) -> None:
    on = numbers(wish.placement(), "shard")
    assert max(on) - min(on) <= 1


@given(wishes(by_hand=False, slots=False))
def test_no_other_placement_of_workers_has_a_lower_maximum_load_per_core(wish: Wish) -> None:
    wish = dataclasses.replace(wish, workers=min(wish.workers, 8), evaluator=False, recorder=False)
    placement = wish.placement()
    shards = dict(zip(placement.hosts, numbers(placement, "shard"), strict=True))

    def highest(workers_on: Counter[str]) -> float:
        """The highest load per core of hosts with workers. The placement of workers does not affect other hosts."""
        return max(((shards[host] + n) / wish.cores[host] for host, n in workers_on.items() if n), default=0.0)

    chosen = Counter(placement.host_of[worker_id(rank)] for rank in range(wish.workers))
    every = map(Counter, itertools.combinations_with_replacement(placement.hosts, wish.workers))
    assert highest(chosen) == min(map(highest, every))


@given(wishes(by_hand=False), st.integers(1, 9), st.integers(0, 4) | st.none())
def test_one_more_host_leaves_nothing_unplaced_and_gives_no_host_more_workers(
    wish: Wish, cores: int, slots: int | None
) -> None:
    more = dataclasses.replace(
        wish,
        hosts=(*wish.hosts, Host(name="new", slots=slots)),
        cores={**wish.cores, "new": cores},
        shards=0,
    )
    before, after = dataclasses.replace(wish, shards=0).placement(), more.placement()
    assert sorted(map(str, after.host_of)) == sorted(more.names())
    assert all(now <= then for now, then in zip(numbers(after, "worker"), numbers(before, "worker"), strict=False))
