"""Complete runs whose workers learn with a schedule, or do not learn at all."""

import os
from pathlib import Path

import pytest
from support.paths import ROOT
from support.run_rig import RunFiles, training

from zmqrl.checkpoint import Checkpoint, checkpoints

pytestmark = pytest.mark.processes


def run(path: Path, *options: str, importable: Path = ROOT) -> RunFiles:
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(importable)])}
    with training(path, *options, environment=environment) as running:
        assert running.wait() == 0, running.said()
    return running.files


LOSS_THAT_TELLS_ITS_COEFFICIENT = """
import torch
from zmqrl.learner.losses import {algo}_loss

def loss(logits, values, batch, config, entropy_coefficient):
    total, stats = {algo}_loss(logits, values, batch, config, entropy_coefficient)
    return total, stats | {{"told_coefficient": torch.tensor(entropy_coefficient)}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "ba3c"])
def test_schedules_follow_the_version_across_restarts_of_processes(algo: str, tmp_path: Path) -> None:
    """From version 10 on, the rate is 0 and the bonus 0.01, even in workers and shards that start later."""
    (tmp_path / "telling.py").write_text(LOSS_THAT_TELLS_ITS_COEFFICIENT.format(algo=algo), encoding="utf-8")
    path = tmp_path / "run"
    rate = ("--optimizer.learning-rate", "0.01", "--optimizer.final-learning-rate", "0")
    bonus = (f"--{algo}.entropy-coefficient", "0.03", f"--{algo}.final-entropy-coefficient", "0.01")
    until = ("--optimizer.schedule-updates", "10", f"--{algo}.entropy-schedule-updates", "10")
    options = ("--algo", algo, *rate, *bonus, *until, "--loss", "telling:loss")

    files = run(path, *options, "--updates", "10", importable=tmp_path)
    learned = files.newest()
    told = [row["told_coefficient"] for row in files.metrics() if "told_coefficient" in row]
    assert told
    assert all(0.01 < coefficient < 0.0301 for coefficient in told)

    files = run(path, "--resume", "--updates", "20", importable=tmp_path)
    assert files.newest().version == 20
    assert files.newest().params_sha256() == learned.params_sha256()
    told = [row["told_coefficient"] for row in files.metrics()[len(told) :] if "told_coefficient" in row]
    assert told[-1] == pytest.approx(0.01)


@pytest.mark.slow
def test_workers_that_only_act_contribute_and_do_not_change_the_weights(tmp_path: Path) -> None:
    options = ("--env", "zmqrl/Dummy-v0", "--model", "small", "--envs.screen-size", "36", "--network.hidden", "16")
    files = run(tmp_path / "run", *options, "--updates", "48", "--act-only")
    files.assert_history_exact(48)
    summary = files.assert_summary_exact("updates")
    # A worker that sees the last version before BYE plays once more.
    assert summary["agent_steps"] in range(2 * 3 * 32 * 8, 2 * 4 * 32 * 8 + 1, 32 * 8)
    assert summary["episodes"] > 0
    assert summary["score_mean_50"] > 0
    assert summary["flavour"].startswith("no game: ")
    assert all(row["loss"] is row["entropy"] is row["grad_norm"] is None for row in files.metrics())
    # Read from the checkpoint: the last bits of orthogonal weights depend on the number of torch's threads.
    first, *_, last = map(Checkpoint.read, checkpoints(files.path / "checkpoints"))
    assert (first.version, last.version) == (0, 48)
    assert first.params_sha256() == last.params_sha256()
