"""Whole runs whose workers learn by a schedule, or not at all."""

import os
from pathlib import Path

import pytest
from run_rig import RunFiles, training

from zmqrl.agent.envs import describe_env
from zmqrl.cluster.run import initial_checkpoint
from zmqrl.config import Config

pytestmark = pytest.mark.timeout(100)
ROOT = Path(__file__).parent.parent


def run(path: Path, *options: str, importable: Path = ROOT) -> RunFiles:
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(importable)])}
    with training(path, *options, environment=environment) as running:
        assert running.wait() == 0, running.said()
    return running.files


def test_workers_that_only_act_play_and_contribute_and_leave_the_weights_alone(tmp_path: Path) -> None:
    options = ("--env", "zmqrl/Dummy-v0", "--model", "small", "--envs.screen-size", "36", "--network.hidden", "16")
    files = run(tmp_path / "run", *options, "--updates", "48", "--act-only")
    files.assert_history_exact(48)
    summary = files.assert_summary_exact("updates")
    assert summary["agent_steps"] == 2 * 3 * 32 * 8
    assert summary["episodes"] > 0
    assert summary["score_mean_50"] > 0
    assert summary["flavour"].startswith("no game: ")
    assert all(row["loss"] is row["entropy"] is row["grad_norm"] is None for row in files.metrics())
    config = Config.read(files.path / "config.json")
    initial = initial_checkpoint(config, describe_env(config.env, config.envs))
    assert files.newest().params_sha256() == initial.params_sha256()
