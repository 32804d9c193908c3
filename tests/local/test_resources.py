"""The resources of a machine, read from files like those of the kernel."""

import os
from pathlib import Path

import pytest

from zmqrl.local.resources import VARIABLES, resources, to_json, torch_build

CPUINFO = """processor\t: 0
model name\t: Fast CPU @ 9 GHz
flags\t\t: fpu avx2 avx512f avx512_bf16
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory like that of a machine, without any files yet."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "sys/devices/system/clocksource/clocksource0").mkdir(parents=True)
    return tmp_path


def test_the_processor_its_instructions_and_the_clock_are_read(root: Path) -> None:
    (root / "proc/cpuinfo").write_text(CPUINFO, encoding="utf-8")
    (root / "sys/devices/system/clocksource/clocksource0/current_clocksource").write_text("hpet\n", encoding="utf-8")
    found = resources(0.5, root, {})
    assert (found.processor, found.clock_source) == ("Fast CPU @ 9 GHz", "hpet")
    assert found.instructions == ("avx2", "avx512f", "avx512_bf16")
    assert found.has_bfloat16
    assert found.bound_cores == len(os.sched_getaffinity(0))


def test_a_machine_that_says_nothing_has_unknown_resources(root: Path) -> None:
    found = resources(None, root, {})
    assert (found.processor, found.clock_source, found.busy_cores) == ("unknown", None, None)
    assert (found.quota_cores, found.instructions, found.has_bfloat16) == (None, (), False)


def test_only_variables_that_change_the_speed_are_kept(root: Path) -> None:
    found = resources(None, root, {"OMP_NUM_THREADS": "8", "HOME": "/root"})
    assert found.variables == {"OMP_NUM_THREADS": "8"}
    assert "HOME" not in VARIABLES


def test_this_machine_and_its_torch_are_plain_data() -> None:
    about = to_json(resources(0.5), torch_build())
    assert about["busy_cores"] == 0.5
    assert about["usable_cores"] <= about["bound_cores"] <= about["cores"]
    assert about["torch"]["version"]
    assert about["torch"]["threading"] == "OpenMP"
