"""The arithmetic of ``zmqrl bench train``: from recorded cycles to the time of an agent step, and from such times to a
speed.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.profiles import cycle, worker

from zmqrl.bench.efficiency import PARTS, SPLIT, Efficiency, StepTimes, per_step_s, split_of
from zmqrl.errors import ClusterError
from zmqrl.profile.run_tables import Columns

# Each iteration makes two updates from a rollout of ten agent steps.
ITERATION = {"updates_per_rollout": 2, "steps_per_rollout": 10}
SPANS: dict[str, Any] = {"wait": 0.02, "gradient": 0.3, "push": 0.01, "assemble": 0.02}
PLAYED = SPANS | {"env_step": 0.4, "act": 0.2}

seconds = st.floats(1e-6, 1.0)
times = st.fixed_dictionaries(dict.fromkeys(SPLIT, seconds))


def cycles(versions: int, *, rank: int = 0, played_every: int = 2) -> Columns:
    """A worker that acts at every other version. A cycle with a rollout takes 1 s. A cycle without one takes 0.4 s."""
    rows, now = [], 100.0
    for version in range(versions):
        played = version % played_every == 0
        ends = now + (1.0 if played else 0.4)
        rows.append(cycle(version, now, now, ends, **(PLAYED if played else SPANS)))
        now = ends
    return worker(rank, cycles=rows).table("cycles")


def test_the_split_adds_up_to_the_time_of_whole_iterations() -> None:
    split_s = split_of([cycles(6), cycles(6, rank=1)], first_version=2, **ITERATION)
    assert split_s == pytest.approx(
        {"env_step": 0.04, "act": 0.02, "gradient": 0.06, "wait": 0.004, "rest": 0.14 - 0.124}
    )


@pytest.mark.parametrize("versions", [6, 7])
def test_an_iteration_that_the_run_cut_off_is_left_out(versions: int) -> None:
    assert split_of([cycles(versions)], first_version=2, **ITERATION) == split_of(
        [cycles(6)], first_version=2, **ITERATION
    )


def test_the_warm_up_is_left_out() -> None:
    slow = cycle(0, 0.0, 0.0, 100.0, **PLAYED), cycle(1, 100.0, 100.0, 200.0, **SPANS)
    fast = cycle(2, 200.0, 200.0, 201.0, **PLAYED), cycle(3, 201.0, 201.0, 201.4, **SPANS)
    table = worker(0, cycles=[*slow, *fast]).table("cycles")
    assert sum(split_of([table], first_version=1, **ITERATION).values()) == pytest.approx(0.14)


def test_a_worker_without_a_whole_iteration_does_not_count() -> None:
    none = cycles(0), cycles(2), cycles(3)
    assert split_of([*none, cycles(4)], first_version=2, **ITERATION) == split_of(
        [cycles(4)], first_version=2, **ITERATION
    )
    with pytest.raises(ClusterError, match="whole rollout"):
        split_of(none, first_version=2, **ITERATION)


@given(st.lists(st.tuples(seconds, st.integers(1, 1000)), min_size=1))
def test_the_time_of_a_step_is_that_of_all_workers_together(measured: list[tuple[float, int]]) -> None:
    each = [seconds / steps for seconds, steps in measured]
    found = per_step_s({"seconds": seconds, "steps": steps} for seconds, steps in measured)
    assert min(each) <= found * (1 + 1e-9)
    assert found <= max(each) * (1 + 1e-9)


@given(st.integers(1, 64), st.lists(times, min_size=1, max_size=4), st.data())
def test_the_limit_is_the_speed_of_the_bare_parts_added_up(
    workers: int, splits: list[dict[str, float]], data: st.DataObject
) -> None:
    rounds = [StepTimes(bare_s={name: data.draw(seconds) for name in PARTS}, split_s=split_s) for split_s in splits]
    found = Efficiency(workers=workers, rounds=rounds)
    assert found.steps_per_s * sum(found.split_s.values()) == pytest.approx(workers)
    assert found.limit_steps_per_s * sum(found.bare_s.values()) == pytest.approx(workers)
    assert found.limit_steps_per_s < found.environment_steps_per_s
    assert found.efficiency == pytest.approx(sum(found.bare_s.values()) / sum(found.split_s.values()))


def test_json_has_the_totals_the_parts_and_the_rounds() -> None:
    bare_s = {"env_step": 4e-4, "act": 1e-4, "gradient": 3e-4}
    fast = {"env_step": 4e-4, "act": 2e-4, "gradient": 4e-4, "wait": 0.0, "rest": 0.0}
    slow = fast | {"wait": 4e-4, "rest": 2e-4}
    rounds = [StepTimes(bare_s=bare_s, split_s=fast), StepTimes(bare_s=bare_s, split_s=slow)]
    found = Efficiency(workers=2, rounds=rounds).to_json()
    assert found["agent_steps_per_s"] == pytest.approx(2 / 1.3e-3)
    assert found["component_limit_steps_per_s"] == pytest.approx(2500)
    assert found["efficiency"] == pytest.approx(8 / 13)
    assert found["split_s"] == pytest.approx(fast | {"wait": 2e-4, "rest": 1e-4})
    assert found["bare_s"] == pytest.approx(bare_s)
    assert found["efficiency_by_part"] == pytest.approx({"env_step": 1.0, "act": 0.5, "gradient": 0.75})
    assert found["environment_steps_per_s"] == pytest.approx(5000)
    assert found["fraction_of_environment"] == pytest.approx(4 / 13)
    assert [one["efficiency"] for one in found["rounds"]] == pytest.approx([0.8, 0.5])
