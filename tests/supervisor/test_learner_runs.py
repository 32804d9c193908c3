"""Complete runs whose workers learn with a schedule, or do not learn at all."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.paths import ROOT
from support.run_rig import QUICKLY, RunFiles, training

from zmqrl.checkpoint import Checkpoint, checkpoints

pytestmark = pytest.mark.processes


def run(path: Path, *options: str, quickly: Sequence[str] = QUICKLY, importable: Path = ROOT) -> RunFiles:
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(importable)])}
    with training(path, *options, quickly=quickly, environment=environment) as running:
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
    """From version 10 on, the learning rate is 0 and the entropy bonus 0.01, even in processes that start later."""
    (tmp_path / "telling.py").write_text(LOSS_THAT_TELLS_ITS_COEFFICIENT.format(algo=algo), encoding="utf-8")
    path = tmp_path / "run"
    rate = ("--optimizer.learning-rate", "0.01", "--optimizer.final-learning-rate", "0")
    bonus = (f"--{algo}.entropy-coefficient", "0.03", f"--{algo}.final-entropy-coefficient", "0.01")
    until = ("--optimizer.schedule-updates", "10", f"--{algo}.entropy-schedule-updates", "10")
    options = ("--algo", algo, *rate, *bonus, *until, "--loss", "telling:loss")
    quickly = QUICKLY if algo == "ppo" else ()

    files = run(path, *options, "--updates", "10", quickly=quickly, importable=tmp_path)
    learned = files.newest()
    told = [row["told_coefficient"] for row in files.metrics() if "told_coefficient" in row]
    assert told
    assert all(0.01 < coefficient < 0.0301 for coefficient in told)

    files = run(path, "--resume", "--updates", "20", quickly=quickly, importable=tmp_path)
    assert files.newest().version == 20
    assert files.newest().params_sha256() == learned.params_sha256()
    told = [row["told_coefficient"] for row in files.metrics()[len(told) :] if "told_coefficient" in row]
    assert told[-1] == pytest.approx(0.01)


FALLING = ("--optimizer.learning-rate", "1e-3", "--optimizer.final-learning-rate", "1e-5")


def made_at(files: RunFiles, shards: int = 2) -> list[int]:
    """The progress for which each version was made. This progress is the same on all shards."""
    first, *others = ([line.get("made_at", 0) for line in files.history(shard)] for shard in range(shards))
    assert all(other == first for other in others)
    return first


@pytest.mark.slow
def test_a_resumed_run_continues_schedules_that_follow_updates(tmp_path: Path) -> None:
    """The first session ends before its schedules do. The second session has another limit, and continues the
    schedules.
    """
    (tmp_path / "telling.py").write_text(LOSS_THAT_TELLS_ITS_COEFFICIENT.format(algo="ppo"), encoding="utf-8")
    bonus = ("--ppo.entropy-coefficient", "0.03", "--ppo.final-entropy-coefficient", "0.01")
    path, loss = tmp_path / "run", ("--loss", "telling:loss")
    options = (*FALLING, *bonus, *loss, "--schedule.updates", "40")
    run(path, *options, "--updates", "20", importable=tmp_path)
    files = run(path, "--resume", "--updates", "60", importable=tmp_path)
    assert made_at(files) == [min(1_000_000, 25_000 * version) for version in range(60)]
    last = files.metrics()[-1]
    assert last["learning_rate"] == pytest.approx(1e-5)
    assert last["told_coefficient"] == pytest.approx(last["entropy_coefficient"], abs=1e-6)
    assert last["entropy_coefficient"] == pytest.approx(0.01, abs=0.005)


@pytest.mark.slow
def test_schedules_end_with_the_minutes_of_a_run(tmp_path: Path) -> None:
    files = run(tmp_path / "run", *FALLING, "--minutes", "0.5", "--workers", "3", "--backups", "1")
    progress = made_at(files)
    assert progress == sorted(progress)
    assert progress[-1] > 800_000
    first, *_, last = files.metrics()
    assert last["learning_rate"] < first["learning_rate"]
    assert last["learning_rate"] < 3e-4
    assert json.loads((files.path / "config.json").read_text(encoding="utf-8"))["schedule"]["minutes"] == 0.5


@pytest.mark.slow
def test_schedules_follow_the_agent_steps_of_a_run(tmp_path: Path) -> None:
    files = run(tmp_path / "run", *FALLING, "--agent-steps", "20000")
    progress = made_at(files)
    assert progress == sorted(progress)
    assert 0 < progress[-1] <= 1_000_000
    assert len(set(progress)) > 3


@pytest.mark.slow
def test_consistent_runs_whose_schedules_follow_agent_steps_are_bit_identical(tmp_path: Path) -> None:
    """Two workers play 512 steps in 16 updates, so 20480 steps are 640 updates."""
    options = (
        *FALLING,
        "--ppo.final-clip",
        "0.05",
        "--consistent",
        "--updates",
        "64",
        "--schedule.agent-steps",
        "20480",
    )
    runs = [run(tmp_path / str(shards), *options, "--shards", str(shards)) for shards in (2, 3)]
    assert len({files.newest().params_sha256() for files in runs}) == 1
    for files, shards in zip(runs, (2, 3), strict=True):
        assert made_at(files, shards) == [round(1e6 * version / 640) for version in range(64)]


@pytest.mark.slow
def test_the_contributions_of_workers_that_only_act_do_not_change_the_weights(tmp_path: Path) -> None:
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
    # The first weights are read from the checkpoint, because the last bits of orthogonal weights depend on the number
    # of torch's threads.
    first, *_, last = map(Checkpoint.read, checkpoints(files.path / "checkpoints"))
    assert (first.version, last.version) == (0, 48)
    assert first.params_sha256() == last.params_sha256()
