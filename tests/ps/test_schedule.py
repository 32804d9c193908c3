"""The progress that a shard publishes, and runs whose learning rate follows this progress."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rig import served, toy_workers

from zmqrl.errors import UsageError
from zmqrl.ps.schedule import WHOLE, elapsed_at
from zmqrl.ps.shard.optimizer import OptimizerConfig
from zmqrl.ps.wire import messages as m

FALLING = OptimizerConfig(name="sgd", learning_rate=0.5, final_learning_rate=0.0)

progress = st.integers(0, WHOLE)
horizons = st.none() | st.floats(0.5, 1e9)


@given(version=st.integers(0, 2**53), horizon=horizons, told=progress)
def test_progress_is_between_the_last_told_value_and_the_whole_run(
    version: int, horizon: float | None, told: int
) -> None:
    elapsed = elapsed_at(version, horizon=horizon, told=told)
    assert told <= elapsed <= WHOLE
    assert elapsed <= elapsed_at(version + 1, horizon=horizon, told=told)
    assert horizon is not None or elapsed == told


@given(horizon=st.integers(1, 10**6), told=progress)
def test_progress_is_complete_at_the_horizon(horizon: int, told: int) -> None:
    assert elapsed_at(horizon, horizon=horizon, told=told) == WHOLE
    assert elapsed_at(0, horizon=horizon, told=0) == 0


def test_a_schedule_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="final_learning_rate 0"), served(tmp_path, optimizer=FALLING):
        pass


@pytest.mark.processes
def test_the_learning_rate_falls_until_the_horizon_even_if_a_shard_dies(tmp_path: Path) -> None:
    with served(tmp_path, shards=3, optimizer=FALLING, horizon=80.0) as running:
        with ExitStack() as stack:
            stack.enter_context(toy_workers([running.cluster] * 2, pause_s=lambda rank, version: 0.005))
            running.wait_for(20)
            running.kill(1)
            running.restart(1)
            running.wait_for(90)
            running.finish(stack)
        for shard in running.all:
            made_at = [line.get("made_at", 0) for line in running.history(shard)]
            assert made_at[:82] == [min(WHOLE, 12_500 * version) for version in range(82)]


@pytest.mark.processes
def test_all_shards_make_a_version_for_the_same_progress_even_if_told_at_different_times(
    tmp_path: Path,
) -> None:
    with served(tmp_path, shards=2, optimizer=FALLING, horizon=1e9) as running:
        control = running.shards.control
        with ExitStack() as stack:
            stack.enter_context(toy_workers([running.cluster] * 2, pause_s=lambda rank, version: 0.002))
            for step in range(1, 9):
                running.wait_for(10 * step)
                # The other shard is not told, as if the message was lost.
                control.send(step % 2, m.Elapsed(run=running.cluster.run, elapsed=100_000 * step))
            running.wait_for(100)
            running.finish(stack)
        first, second = ([line.get("made_at", 0) for line in running.history(shard)] for shard in running.all)
        assert first == second == sorted(first)
        assert first[-1] == 800_000
