"""The advice of zmqrl about a machine: nothing for a good machine, and one sentence for each limit."""

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.local.advice import advice
from zmqrl.local.resources import VARIABLES, Resources, TorchBuild

GOOD = Resources(
    processor="CPU",
    instructions=("avx2", "avx512f", "avx512_bf16"),
    cores=8,
    bound_cores=8,
    quota_cores=None,
    usable_cores=8,
    busy_cores=0.2,
    clock_source="tsc",
    variables={"OMP_NUM_THREADS": "3"},
)
TORCH = TorchBuild(version="2.13", cuda=None, threading="OpenMP", capability="AVX512", onednn=True)


def told(**changes: Any) -> list[str]:
    return advice(dataclasses.replace(GOOD, **changes), TORCH, cuda=False)


def test_a_good_machine_needs_no_change() -> None:
    assert told() == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bound_cores": 4, "usable_cores": 4}, r"bound to 4 of 8 cores, so a run uses 4: ask for more"),
        ({"quota_cores": 2.0, "usable_cores": 2}, r"control group is 2 of 8 cores, so a run uses 2: raise the quota"),
        ({"busy_cores": 3.14}, r"other programs use 3\.1 of 8 cores"),
        ({"clock_source": "hpet"}, r"clock source is hpet"),
        ({"variables": {"OMP_WAIT_POLICY": "ACTIVE"}}, r"OMP_WAIT_POLICY=active .*: unset it"),
        ({"variables": {"ATEN_CPU_CAPABILITY": "default"}}, r"ATEN_CPU_CAPABILITY=default limits .*: unset it"),
    ],
)
def test_each_limit_has_one_sentence_with_a_remedy(changes: dict[str, Any], sentence: str) -> None:
    (text,) = told(**changes)
    assert re.search(sentence, text)


def test_a_quota_that_is_not_a_whole_number_leaves_a_part_unused() -> None:
    first, second = told(quota_cores=2.5, usable_cores=2)
    assert "2.5 of 8 cores" in first
    assert second == "a run uses whole cores: it leaves 0.5 of the quota of 2.5 unused"


@pytest.mark.parametrize(
    ("build", "cuda", "sentence"),
    [
        ({"cuda": "13.0"}, True, None),
        ({"cuda": "13.0"}, False, "CUDA build"),
        ({"threading": "native thread pool"}, False, "native thread pool threads, not OpenMP"),
        ({"onednn": False}, False, "no oneDNN"),
        ({"capability": "DEFAULT"}, False, "does not use AVX512, which the processor has"),
    ],
)
def test_the_build_of_torch_is_judged(build: dict[str, Any], cuda: bool, sentence: str | None) -> None:
    found = advice(GOOD, dataclasses.replace(TORCH, **build), cuda=cuda)
    assert len(found) == (sentence is not None)
    assert sentence is None or sentence in found[0]


@given(
    st.builds(
        Resources,
        processor=st.text(),
        instructions=st.sets(st.sampled_from(["avx2", "avx512f", "avx512_bf16", "amx_bf16"])).map(tuple),
        cores=st.integers(1, 512),
        bound_cores=st.integers(1, 512),
        quota_cores=st.none() | st.floats(0.01, 512),
        usable_cores=st.integers(1, 512),
        busy_cores=st.none() | st.floats(0, 512),
        clock_source=st.none() | st.sampled_from(["tsc", "hpet"]),
        variables=st.dictionaries(st.sampled_from(VARIABLES), st.text()),
    )
)
def test_every_machine_can_be_judged(found: Resources) -> None:
    for text in advice(found, TORCH, cuda=False):
        assert ": " in text
        assert not text.endswith(".")
