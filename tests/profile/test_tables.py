import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.observe.spans import WORKER_SPANS
from zmqrl.profile.critical_path import OTHER, WORK
from zmqrl.profile.tables import COLUMNS, FORMAT, PREFIX, pack, unpack

numbers = st.integers(-(2**62), 2**62)
tables = st.integers(1, 5).flatmap(
    lambda columns: st.lists(st.lists(numbers, min_size=columns, max_size=columns), min_size=1, max_size=30)
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), tables), max_size=4), st.data())
def test_a_file_is_read_up_to_where_it_is_cut_or_damaged(
    written: list[dict[str, list[list[int]]]], data: st.DataObject
) -> None:
    blocks = [pack({"number": i}, each) for i, each in enumerate(written)]
    whole = b"".join(blocks)
    cut = data.draw(st.integers(0, len(whole)))
    read = list(unpack(whole[:cut]))
    ends = np.cumsum([len(block) for block in blocks])
    assert [block["number"] for block in read] == [i for i, end in enumerate(ends) if end <= cut]
    for block, each in zip(read, written, strict=False):
        assert {name: table.tolist() for name, table in block["tables"].items()} == each
    if blocks:
        damaged = bytearray(whole)
        damaged[PREFIX.size + data.draw(st.integers(0, len(blocks[0]) - PREFIX.size - 1))] ^= 0xFF
        assert list(unpack(bytes(damaged))) == []


def test_a_row_of_a_worker_takes_less_than_forty_bytes() -> None:
    draw = np.random.default_rng(0)
    spans_us = draw.normal([90_000, 20_000, 60_000, 300, 50, 3_000], [9_000, 2_000, 6_000, 30, 5, 3_000], (50, 6))
    ends = np.cumsum(draw.normal(200_000, 20_000, 50))
    rows = [
        [1, version, int(end), int(end) + 500, *map(int, spans)]
        for version, (end, spans) in enumerate(zip(ends, spans_us, strict=True))
    ]
    assert len(pack({}, {"cycles": rows})) < 40 * len(rows)


def test_cycles_of_an_older_profile_lack_the_time_in_the_run_queue() -> None:
    now = list(range(len(COLUMNS["cycles"])))
    (block,) = unpack(pack({}, {"cycles": [now[:-1], now[:-1]]}))
    assert block["tables"]["cycles"].tolist() == 2 * [[*now[:-1], -1]]
    (block,) = unpack(pack({}, {"cycles": [now]}))
    assert block["tables"]["cycles"].tolist() == [now]


def test_every_span_of_a_worker_is_on_the_path() -> None:
    assert {*WORK} == {*WORKER_SPANS, OTHER}


def test_the_columns_are_those_of_the_format() -> None:
    """Other columns would give older profiles a wrong meaning: raise ``FORMAT`` with the digest, unless the new columns
    are the last ones of their table and listed in ``ADDED``.
    """
    digest = hashlib.sha256(repr(sorted(COLUMNS.items())).encode()).hexdigest()[:16]
    assert (FORMAT, digest) == (1, "dd3b0a3ca530b8cb")
