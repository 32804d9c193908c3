"""Every recipe trains, and the recipe of the original system computes the same as DBA3C."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.actor_learners import actor_learner_of
from support.commands import ran
from support.paths import ROOT
from support.run_rig import RunFiles, started
from torch.nn import functional as F

from zmqrl.learner.losses import Batch, ba3c_loss
from zmqrl.learner.settings import BA3CConfig
from zmqrl.recipes import RECIPES, dba3c_breakout, remarks, run_name


@pytest.mark.parametrize("name", RECIPES)
def test_the_settings_of_every_recipe_are_valid(name: str) -> None:
    RECIPES[name]().check()
    config = RECIPES[name]().with_schedule()
    config.check()
    assert config.recipe == name
    assert config.algorithm.minibatch_samples(config.envs.num_envs) > 0


def train_briefly(name: str, path: Path) -> None:
    """Make two updates with the unchanged recipe ``name``."""
    command = [sys.executable, "-m", "zmqrl", "train", name, "--updates", "2", "--trackers", "--run-dir", str(path)]
    with started(command, path, {}) as run:
        assert run.wait() == 0, run.said()
    summary = run.files.summary()
    assert (summary["recipe"], summary["exit_reason"], summary["updates"]) == (name, "updates", 2)
    assert run.files.newest().version == 2


@pytest.mark.processes
def test_the_main_recipe_trains(tmp_path: Path) -> None:
    train_briefly("breakout", tmp_path / "run")


NEED_AN_EXTRA = {"bipedalwalker", "hopper"}


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RECIPES.keys() - NEED_AN_EXTRA - {"breakout"}))
def test_a_recipe_trains(name: str, tmp_path: Path) -> None:
    train_briefly(name, tmp_path / "run")


@pytest.mark.parametrize(
    ("recipe", "env", "name"),
    [
        ("breakout", "ALE/Pong-v5", "breakout"),
        ("gymnasium", "Acrobot-v1", "Acrobot-v1"),
        ("gymnasium", "my_games:mazes/Large Maze/v0", "mazes-Large-Maze-v0"),
    ],
)
def test_a_new_run_has_the_name_of_its_recipe_or_of_its_environment(recipe: str, env: str, name: str) -> None:
    assert run_name(replace(RECIPES[recipe](), env=env)) == name


@pytest.mark.processes
@pytest.mark.slow
def test_an_environment_without_a_recipe_trains_in_a_directory_of_its_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zmqrl", "train", "--env", "Acrobot-v1", "--updates", "2", "--trackers"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = ran(command, cwd=tmp_path, env=environment)
    (directory,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"Acrobot-v1-\d{8}-\d{6}", directory.name)
    summary = RunFiles(directory).summary()
    assert (summary["recipe"], summary["env"], summary["updates"]) == ("gymnasium", "Acrobot-v1", 2)
    assert "the recipe is gymnasium, which fits most environments" in done.stdout


@pytest.mark.processes
def test_bipedalwalker_trains_with_its_extra(tmp_path: Path, need_modules: Callable[..., None]) -> None:
    need_modules("Box2D")
    train_briefly("bipedalwalker", tmp_path / "run")


@pytest.mark.processes
def test_hopper_trains_with_its_extra(tmp_path: Path, need_modules: Callable[..., None]) -> None:
    need_modules("mujoco")
    train_briefly("hopper", tmp_path / "run")


def test_the_loss_matches_the_original() -> None:
    """The mean over the batch of log pi(a) (V - R) + 0.01 p log p + (V - R)^2 / 2.

    The gradient ignores the first V. The original adds 1e-6 to p inside the logarithms.
    """
    generator = torch.Generator().manual_seed(0)
    logits, values, returns = (torch.randn(32, *shape, generator=generator) for shape in ((4,), (), ()))
    actions = torch.randint(0, 4, (32,), generator=generator)
    batch = Batch(actions=actions, log_probs=torch.zeros(32), advantages=torch.zeros(32), returns=returns)
    for tensor in (logits, values):
        tensor.requires_grad_()
    config = dba3c_breakout().algorithm
    assert isinstance(config, BA3CConfig)
    ours, _ = ba3c_loss(logits, values, batch, config, config.entropy_coefficient)

    policy = logits.softmax(1)
    log_policy = torch.log(policy + 1e-6)
    policy_loss = (log_policy * F.one_hot(actions, 4)).sum(1) * (values.detach() - returns)
    theirs = (policy_loss + 0.01 * (policy * log_policy).sum(1) + (values - returns).square() / 2).sum() / 32
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for our, their in zip(*(torch.autograd.grad(loss, (logits, values)) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-5)


@pytest.mark.processes
def test_a_worker_learns_from_five_step_rollouts_with_values_from_the_acting_policy() -> None:
    with actor_learner_of(dba3c_breakout()) as actor_learner:
        rollout = actor_learner.rollout
        assert rollout.observations.shape == (5, 6, 12, 84, 84)
        actor_learner.player.play(rollout)
        # The first frame of a game is the only one in its stack.
        assert rollout.observations[0, :, 9:].any()
        assert not rollout.observations[0, :, :9].any()
        last_values = rollout.last_values.clone()
        with torch.no_grad():
            for parameter in actor_learner.player.model.parameters():
                parameter.mul_(1.1)  # the weights of the learner may be newer than those of the player
        actor_learner.learner.prepare(rollout)
        expected = last_values
        for t in reversed(range(5)):
            expected = rollout.rewards[t] + 0.99 * expected * ~rollout.terminated[t]
            torch.testing.assert_close(rollout.returns[t], expected)
        metrics = actor_learner.learner.gradient(rollout, 0, version=0)
        assert metrics["grad_norm_clipped"] == metrics["grad_norm"] > 0


@pytest.mark.parametrize(
    ("recipe", "workers", "told"),
    [
        ("dba3c-breakout", 2, "an update learns from 60 samples, but from 1,920 in the paper: "),
        ("dba3c-breakout", 60, None),
        ("breakout", 2, None),
        ("gymnasium", 2, "the recipe is gymnasium, which fits most environments; "),
    ],
)
def test_a_run_says_when_its_updates_are_smaller_than_in_the_paper_and_when_its_recipe_is_for_any(
    recipe: str, workers: int, told: str | None
) -> None:
    found = list(remarks(replace(RECIPES[recipe](), workers=workers)))
    assert len(found) == (told is not None)
    assert all(each.startswith(str(told)) for each in found)


def test_a_run_says_that_a_custom_network_gets_scaled_observations() -> None:
    told = (
        "--model my_games:net gets observations scaled to mean 0 and variance 1: if it needs the numbers of the "
        "environment, such as masks, use --envs.no-normalize-observations"
    )
    for recipe, is_told in (("gymnasium", True), ("pendulum", True), ("cartpole", False)):
        config = replace(RECIPES[recipe](), model="my_games:net")
        assert (told in remarks(config)) == is_told
        raw = replace(config, envs=replace(config.envs, normalize_observations=False))
        assert told not in remarks(raw)
    assert told not in remarks(replace(RECIPES["pendulum"](), model="mlp"))
