"""The load of a machine's processors."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.hosts.judging.load import cpu_use, load_warnings

TICKS = st.lists(st.integers(0, 10**6), min_size=10, max_size=10)


def stat(ticks: list[int], cores: int = 4) -> str:
    cpus = "".join(f"cpu{number} 1 2 3\n" for number in range(cores))
    return f"cpu  {' '.join(map(str, ticks))}\n{cpus}intr 1 2\nctxt 3\n"


def test_busy_cores_and_steal_are_measured_between_two_moments() -> None:
    before = [1000, 0, 500, 9000, 100, 0, 0, 10, 77, 0]
    passed = [30, 10, 10, 30, 10, 0, 0, 10, 5, 0]  # guest time is part of user time
    after = [then + more for then, more in zip(before, passed, strict=True)]
    assert cpu_use(stat(before), stat(after)) == {"machine_cores": 4, "busy_cores": 2.0, "steal_share": 0.1}
    assert cpu_use(stat(before), stat(before)) == {"machine_cores": 4, "busy_cores": 0.0, "steal_share": 0.0}


@pytest.mark.parametrize(
    ("after", "share"),
    [
        ([100, 0, 0, 1100, 0, 0, 0, 0, 0, 0], 0.0),
        ([600, 0, 0, 600, 0, 0, 0, 0, 0, 0], 0.5),
        ([350, 0, 0, 600, 250, 0, 0, 0, 0, 0], 0.25),  # 250 ticks waiting for a disk
        ([600, 0, 400, 200, 0, 0, 0, 0, 900, 900], 0.9),  # time for guests is also part of user
    ],
)
def test_busy_cores_are_the_share_of_time_that_is_not_idle(after: list[int], share: float) -> None:
    before = [100, 0, 0, 100, 0, 0, 0, 0, 0, 0]
    assert cpu_use(stat(before), stat(after))["busy_cores"] == pytest.approx(4 * share, abs=1e-9)


@given(TICKS, TICKS, st.integers(1, 64))
def test_no_machine_is_busier_than_its_cores(before: list[int], passed: list[int], cores: int) -> None:
    after = [then + more for then, more in zip(before, passed, strict=True)]
    use = cpu_use(stat(before, cores), stat(after, cores))
    assert 0 <= use["busy_cores"] <= cores
    assert 0 <= use["steal_share"] <= 1


def test_the_file_of_this_machine_can_be_read() -> None:
    now = Path("/proc/stat").read_text(encoding="ascii")
    assert cpu_use(now, now)["machine_cores"] >= 1
    with pytest.raises(ValueError, match="/proc/stat"):
        cpu_use("cpu 1", now)


def test_a_host_without_figures_has_no_warnings() -> None:
    assert list(load_warnings({})) == []
    assert list(load_warnings({"busy_cores": 0.9, "machine_cores": 4, "steal_share": 0.04})) == []
