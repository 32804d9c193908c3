"""``zmqrl bench wire`` measures every possible combination of settings once."""

from typing import Any

import pytest

from zmqrl.bench.grid import IMPLEMENTATIONS, OPERATIONS, Grid
from zmqrl.errors import UsageError

SMALL: dict[str, Any] = {
    "transport": ("tcp",),
    "codec": ("f32",),
    "curve": (False,),
    "parameters": (1000,),
    "workers": (2,),
    "shards": (1,),
    "operation": OPERATIONS,
    "implementation": IMPLEMENTATIONS,
    "rounds": 3,
    "minutes": 5.0,
}


def test_settings_that_change_bytes_or_workers_form_separate_groups() -> None:
    grid = Grid(**SMALL | {"parameters": (1000, 2000), "workers": (1, 4), "codec": ("f32", "bf16"), "shards": (1, 2)})
    groups = list(grid.groups())
    assert len(groups) == 8
    assert len({(group.parameters, group.workers, group.codec) for group in groups}) == 8


def test_a_group_has_every_zmqrl_variant_and_its_comparisons() -> None:
    grid = Grid(**SMALL | {"transport": ("tcp", "ipc"), "curve": (False, True), "shards": (1, 8)})
    (group,) = grid.groups()
    found = list(grid.variants(group))
    ours = {(case.transport, case.curve, case.shards) for name, case in found if name == "zmqrl"}
    assert len(ours) == 8
    assert [(case.transport, case.curve, case.shards) for name, case in found if name == "gloo"] == [("tcp", False, 1)]
    assert [case.shards for name, case in found if name == "raw_tcp"] == [1, 8]
    assert {case.transport for name, case in found if name == "memcpy"} == {"memory"}


def test_the_limit_is_measured_for_each_number_of_shards_and_only_beside_update_rounds() -> None:
    settings = SMALL | {"shards": (1, 8), "implementation": ("limit",)}
    grid = Grid(**settings)
    other = Grid(**settings | {"operation": ("push",), "implementation": ("limit", "memcpy")})
    (group,) = grid.groups()
    found = [(case.transport, case.shards, case.largest_slice) for _, case in grid.variants(group)]
    assert found == [("memory", 1, 1000), ("memory", 8, 128)]
    assert {implementation for implementation, _ in other.variants(group)} == {"memcpy"}


def test_a_value_given_twice_is_measured_once() -> None:
    grid = Grid(**SMALL | {"workers": (2, 2), "transport": ("ipc", "ipc"), "implementation": ("zmqrl", "zmqrl")})
    (group,) = grid.groups()
    assert len(list(grid.variants(group))) == 1


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"workers": (2, 0)}, "--workers 0"),
        ({"workers": (65,)}, "--workers 65"),
        ({"shards": (65,)}, "--shards 65"),
        ({"parameters": (-5,)}, "--parameters -5"),
        ({"parameters": (2**40,)}, f"--parameters {2**40}"),
        ({"parameters": (100,), "shards": (8,)}, "100 parameters cannot be cut into 8 shards"),
        ({"rounds": 0}, "--rounds 0"),
        ({"minutes": 0.0}, "--minutes 0"),
        ({"minutes": float("nan")}, "--minutes nan"),
        ({"transport": ()}, "--transport"),
        ({"operation": ()}, "--operation"),
    ],
)
def test_values_that_cannot_be_measured_are_refused(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(UsageError) as error:
        Grid(**SMALL | changes)
    assert names in str(error.value)
