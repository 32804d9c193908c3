"""The arithmetic of ``zmqrl bench wire``: timestamps become durations, and durations become rows."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.bench.grid import Case, Implementation, Operation
from zmqrl.bench.samples import MeasureKind, Round, rows, samples

MS = 1_000_000


def case(**changes: object) -> Case:
    about = {"transport": "tcp", "codec": "f32", "curve": False, "parameters": 1000, "workers": 2, "shards": 1}
    return Case(**about | changes)  # type: ignore[arg-type]


def at(start_ms: int) -> Round:
    """A round of two workers and two shards: pushes from 0 ms on, publications at 7 and 8 ms, and the end at 12 ms."""

    def ns(*instants_ms: int) -> tuple[int, ...]:
        return tuple((start_ms + each) * MS for each in instants_ms)

    return Round(begun=ns(0, 1), arrived=(ns(3, 5), ns(4, 6)), published=ns(7, 8), done=ns(11, 12))


def test_each_operation_is_a_part_of_a_round() -> None:
    alone = replace(at(20), begun=(20 * MS, 24 * MS))
    found = samples({"together": [[at(0), at(20)]], "alone": [[at(0), alone]]})
    assert found == {
        "update_round": [20.0],  # from the end of a round to the end of the next one
        "push": [4.0],  # from the start of worker 0 to the first gradient at the slower shard
        "ingest": [5.0, 6.0],  # from the start of the first worker to the last gradient at each shard
        "fan_out": [4.0],  # from the publication of the last shard to the end of the round
    }


def test_a_push_that_is_overtaken_lasts_until_all_gradients_have_arrived() -> None:
    late = replace(at(20), begun=(24 * MS, 21 * MS))  # the gradient of worker 1 arrives first, before worker 0 begins
    assert samples({"alone": [[at(0), late]]}) == {"push": [2.0]}


def test_the_first_round_of_each_block_is_a_warm_up() -> None:
    blocks: dict[MeasureKind, list[list[Round]]] = {"together": [[at(0), at(20), at(50)], [at(1000), at(1013)]]}
    assert samples(blocks)["update_round"] == [20.0, 30.0, 13.0]
    assert len(samples(blocks)["fan_out"]) == 3


def test_a_round_of_an_operation_lasts_from_its_start_to_its_end() -> None:
    trips = [Round(begun=(0,), done=(9 * MS,)), Round(begun=(10 * MS,), done=(12 * MS,))]
    assert samples({"round_trip": [trips]}) == {"round_trip": [2.0]}


def test_without_shards_only_update_rounds_are_measured() -> None:
    bare = [Round(begun=(0, 0), done=(each * MS, each * MS)) for each in (5, 9)]
    assert samples({"together": [bare]}) == {"update_round": [4.0]}


@given(st.lists(st.lists(st.integers(1, 10**6), min_size=2, max_size=20), min_size=1, max_size=5))
def test_the_update_rounds_of_a_block_add_up_to_its_length(blocks_us: list[list[int]]) -> None:
    blocks, lengths_us = [], []
    for durations_us in blocks_us:
        ends = [sum(durations_us[: i + 1]) for i in range(len(durations_us))]
        blocks.append([Round(begun=(0,), done=(1000 * end,)) for end in ends])
        lengths_us.append(ends[-1] - ends[0])
    found = samples({"together": blocks}).get("update_round", [])
    assert sum(found) == pytest.approx(sum(lengths_us) / 1000)


def test_a_row_has_percentiles_bytes_and_the_rate_as_a_fraction_of_memcpy() -> None:
    measured: list[tuple[Implementation, Case, dict[Operation, list[float]]]] = [
        ("zmqrl", case(), {"push": [2.0, 4.0, 6.0]}),
        ("memcpy", case(transport="memory"), {"push": [1.0]}),
        ("gloo", case(), {"update_round": [10.0]}),
    ]
    update, push, copy = rows(measured)
    assert (push["implementation"], push["operation"], push["rounds"]) == ("zmqrl", "push", 3)
    assert (push["p50_ms"], push["p99_ms"]) == (4.0, pytest.approx(5.96))
    assert (push["bytes"], push["bytes_per_s"], push["fraction_of_memcpy"]) == (4000, 1e6, 0.25)
    assert copy["fraction_of_memcpy"] == 1.0
    assert (update["implementation"], update["bytes"], update["fraction_of_memcpy"]) == ("gloo", 16_000, None)


def test_an_update_round_is_compared_with_the_limit_for_the_same_bytes_and_shards() -> None:
    one, four = case(), case(shards=4)
    measured: list[tuple[Implementation, Case, dict[Operation, list[float]]]] = [
        ("zmqrl", one, {"update_round": [5.0, 6.0, 7.0], "push": [1.0]}),
        ("zmqrl", four, {"update_round": [5.0]}),
        ("zmqrl", case(workers=4), {"update_round": [5.0]}),
        ("limit", case(transport="memory"), {"update_round": [3.0, 4.0, 5.0]}),
        ("limit", case(transport="memory", shards=4), {"update_round": [2.0]}),
    ]
    found = rows(measured)
    assert [(row["limit_ms"], row["times_limit"]) for row in found if row["operation"] == "update_round"] == [
        (4.0, 1.5),
        (2.0, 2.5),
        (None, None),
        (4.0, 1.0),
        (2.0, 1.0),
    ]
    assert [(row["limit_ms"], row["times_limit"]) for row in found if row["operation"] == "push"] == [(None, None)]


@pytest.mark.parametrize(
    ("operation", "pieces"),
    [
        ("update_round", (6, 2000)),  # three gradients come in, and the weights go out three times
        ("push", (1, 2000)),
        ("ingest", (3, 512)),  # one of four shards: 256 of 1000 bfloat16 numbers, in complete blocks of 16
        ("fan_out", (3, 2000)),
    ],
)
def test_an_operation_counts_the_bytes_of_the_payloads_it_moves(operation: Operation, pieces: tuple[int, int]) -> None:
    assert case(codec="bf16", workers=3, shards=4).pieces(operation) == pieces
