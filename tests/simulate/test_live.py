"""Scenarios run with real processes and sockets on this machine."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from zmqrl.simulate import Failure, Scenario, Straggler
from zmqrl.simulate.live.run import ignored, live, observe

pytestmark = pytest.mark.processes

QUICK = Scenario(workers=2, shards=2, updates=15, compute="constant:0.05", parameters=4096, agent_steps_per_rollout=30)


def test_a_live_run_makes_every_version_and_is_not_faster_than_its_scenario() -> None:
    result = live(QUICK)
    assert len(result.step_s) == 15
    # A shard that is stopped before it notes the time of a version makes one step longer and the next one shorter.
    assert sum(result.step_s) > 15 * 0.05
    assert median(result.step_s) > 0.045
    assert result.used == 15 * 2 * 2
    # A worker may compute once more before it hears that version 15 was the last.
    assert 15 * 2 * 30 <= result.agent_steps <= 16 * 2 * 30
    assert result.elapsed_s == pytest.approx(sum(result.step_s))
    assert all(0 < waited_s < result.elapsed_s for waited_s in result.waiting_s)
    assert result.live


def test_shards_listen_at_an_address_and_workers_are_started_through_a_command(tmp_path: Path) -> None:
    through = ["sh", "-c", f'echo "$@" >> {tmp_path}/started; exec "$@"', "sh"]
    assert observe(QUICK, address="127.0.0.3", workers_through=through).result.used == 15 * 2 * 2
    started = (tmp_path / "started").read_text(encoding="utf-8").splitlines()
    assert [line.split(maxsplit=1)[1] for line in started] == ["-P -m zmqrl.simulate.live.sleeper"] * 2


@pytest.mark.slow
def test_late_work_is_finished_or_abandoned() -> None:
    slow = replace(QUICK, backups=1, stragglers=(Straggler(rank=0, factor=4.0),))
    finished = live(slow)
    assert finished.skipped + finished.late > 0
    assert finished.abandoned == 0
    given_up = live(replace(slow, abandon="immediately"))
    assert given_up.abandoned > 0
    assert given_up.used == finished.used == 15 * 2 * 2


def test_rollouts_and_iterations_match_a_real_worker() -> None:
    result = live(replace(QUICK, rollout="constant:0.2", updates_per_rollout=5))
    assert result.agent_steps == 3 * 2 * 30
    assert sorted(result.step_s)[-3:] > [0.2] * 3


@pytest.mark.slow
@pytest.mark.parametrize("process", ["worker-1", "shard-1"])
def test_a_killed_process_is_restarted(process: str) -> None:
    result = live(replace(QUICK, updates=30, failures=(Failure(process=process, at=0.4, restart_s=0.2),)))
    assert len(result.step_s) == 30
    assert max(result.step_s) > 0.2


def test_an_error_names_settings_that_a_live_run_cannot_have() -> None:
    assert ignored(QUICK) == []
    assert ignored(replace(QUICK, bandwidth=1e9, cores=2)) == ["cores", "bandwidth"]
    assert math.isinf(QUICK.bandwidth)
