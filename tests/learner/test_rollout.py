"""The player: what it stores for each step, where it bootstraps, and that it allocates memory only once."""

from typing import cast

import numpy as np
import pytest
import torch
from support.stub_games import TRUNCATED_EVERY, CountingEnvs, FrameEnvs, described
from torch import Tensor, nn

from zmqrl.learner.envs import Envs, Step
from zmqrl.learner.heads import CATEGORICAL
from zmqrl.learner.networks import make_model
from zmqrl.learner.rollout import Player, Rollout, put_frames
from zmqrl.observe.spans import Spans


class ValueIsTheStep(nn.Module):
    """A model with V(game, step) = step. Its policy prefers the action whose number equals the number of the game."""

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.nn.functional.one_hot(observations[:, 0].long() % 4, 4).float()
        return logits, observations[:, 1].clone()


def make_player(envs: CountingEnvs, *, model: nn.Module | None = None, seed: int = 0) -> Player:
    return Player(model or ValueIsTheStep(), cast(Envs, envs), seed)


def make_rollout(envs: CountingEnvs, steps: int = 6) -> Rollout:
    return Rollout(
        steps=steps,
        num_envs=envs.num_envs,
        spec=envs.spec,
    )


def test_a_rollout_holds_observations_actions_and_rewards() -> None:
    envs = CountingEnvs()
    rollout = make_rollout(envs)
    make_player(envs).play(rollout)
    for t in range(6):
        np.testing.assert_array_equal(rollout.observations[t].numpy(), envs.observe(t))
        np.testing.assert_array_equal(rollout.actions[t].numpy(), envs.actions[t])
        np.testing.assert_array_equal(rollout.values[t].numpy(), np.full(4, t))
    assert torch.equal(rollout.rewards, rollout.actions * 10.0)
    np.testing.assert_array_equal(rollout.last_observations.numpy(), envs.observe(6))
    assert rollout.last_values.tolist() == [6] * 4


def test_log_probs_belong_to_the_actions_taken() -> None:
    envs = CountingEnvs()
    rollout = make_rollout(envs)
    make_player(envs).play(rollout)
    logits, _ = ValueIsTheStep()(rollout.observations.flatten(0, 1))
    expected = logits.log_softmax(-1).gather(1, rollout.actions.flatten()[:, None])[:, 0]
    torch.testing.assert_close(rollout.log_probs.flatten(), expected)


def test_truncated_steps_bootstrap_from_their_final_observation() -> None:
    envs = CountingEnvs()
    rollout = make_rollout(envs)
    make_player(envs).play(rollout)
    expected = torch.zeros(6, 4)
    expected[TRUNCATED_EVERY - 1, [1, 3]] = -TRUNCATED_EVERY
    assert torch.equal(rollout.bootstrap_values, expected)
    assert torch.equal(rollout.truncated, expected != 0)
    assert rollout.terminated.nonzero().tolist() == [[2, 0], [2, 2], [5, 0], [5, 2]]


def test_games_continue_from_one_rollout_to_the_next() -> None:
    envs = CountingEnvs()
    rollout, player = make_rollout(envs, steps=4), make_player(envs)
    first_games = player.play(rollout)
    assert rollout.number == 0
    assert [game.agent_steps for game in first_games] == [3, 3]
    second_games = player.play(rollout)
    assert rollout.number == 1
    assert [game.agent_steps for game in second_games] == [5, 5, 3, 3]
    np.testing.assert_array_equal(rollout.observations[0].numpy(), envs.observe(4))


def test_a_new_rollout_forgets_the_bootstrap_values_of_the_last_one() -> None:
    envs = CountingEnvs()
    rollout, player = make_rollout(envs), make_player(envs)
    player.play(rollout)
    assert rollout.bootstrap_values.nonzero().tolist() == [[4, 1], [4, 3]]
    player.play(rollout)
    assert rollout.bootstrap_values.nonzero().tolist() == [[3, 1], [3, 3]]


def test_playing_again_writes_into_the_same_memory() -> None:
    envs = FrameEnvs(num_envs=2)
    rollout = make_rollout(envs, steps=2)
    player = make_player(envs, model=make_model("small", described((4, 84, 84), 4)))
    tensors = {name: kept for name, kept in vars(rollout).items() if isinstance(kept, Tensor)}
    addresses = {name: kept.data_ptr() for name, kept in tensors.items()}
    player.play(rollout)
    player.play(rollout)
    assert {name: getattr(rollout, name).data_ptr() for name in tensors} == addresses


def test_frames_are_kept_as_bytes_and_channels_last() -> None:
    envs = FrameEnvs(num_envs=2)
    rollout = make_rollout(envs, steps=3)
    make_player(envs, model=make_model("small", described((4, 84, 84), 4))).play(rollout)
    assert rollout.observations.dtype == torch.uint8
    assert rollout.observations.shape == (3, 2, 4, 84, 84)
    for t in range(3):
        assert rollout.observations[t].is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(rollout.observations[t].numpy(), envs.observe(t))
    np.testing.assert_array_equal(rollout.last_observations.numpy(), envs.observe(3))


class CutOffFrames(FrameEnvs):
    """A time limit cuts off games 0 and 2 at each step."""

    def step(self, actions: np.ndarray) -> Step:
        step, finals = super().step(actions), self.observe(1000 + len(self.actions))
        step.truncated = np.array([True, False, True])
        step.final_observations = {i: finals[i] for i in (0, 2)}
        return step


class ChannelsLast(nn.Module):
    """Reads pixels in the order of channels-last memory. The value is the first pixel, in its first channel."""

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        pixels = observations.movedim(1, -1).view(len(observations), -1).float()  # fails for another memory format
        return pixels[:, :4], pixels[:, 0]


def test_every_image_is_channels_last_even_the_last_one_of_a_cut_off_game() -> None:
    envs = CutOffFrames(num_envs=3)
    rollout = make_rollout(envs, steps=2)
    make_player(envs, model=ChannelsLast()).play(rollout)
    for t in range(2):
        firsts = envs.observe(1001 + t)[:, 0, 0, 0]
        assert rollout.bootstrap_values[t].tolist() == [firsts[0], 0, firsts[2]]


@pytest.mark.parametrize("envs", [CountingEnvs(num_envs=3), FrameEnvs(num_envs=3)])
def test_gathered_observations_belong_to_the_requested_samples(envs: CountingEnvs) -> None:
    rollout = make_rollout(envs, steps=4)
    for t in range(4):
        put_frames(rollout.observations[t], envs.observe(t))
    for samples in ([11, 0, 4, 4], [7]):
        gathered = rollout.gather_observations(torch.tensor(samples))
        assert gathered.shape == (len(samples), *envs.spec.observation_shape)
        assert torch.equal(gathered, torch.stack([rollout.observations[s // 3, s % 3] for s in samples]))


def test_the_seed_decides_games_and_actions() -> None:
    def play(seed: int) -> tuple[int, list[int]]:
        envs = CountingEnvs()
        rollout = make_rollout(envs, steps=20)
        make_player(envs, seed=seed).play(rollout)
        return envs.seed, rollout.actions.flatten().tolist()

    assert play(7) == play(7)
    assert play(7)[0] == 7
    assert play(7)[1] != play(8)[1]


def test_playing_does_not_touch_the_global_random_state() -> None:
    envs = CountingEnvs()
    before = torch.get_rng_state()
    make_player(envs).play(make_rollout(envs))
    assert torch.equal(torch.get_rng_state(), before)


def test_actions_are_drawn_with_the_probabilities_of_the_logits() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.0, 0.7])
    actions, log_probs = CATEGORICAL.sample(probabilities.log().expand(20_000, 4), torch.Generator().manual_seed(0))
    torch.testing.assert_close(actions.bincount(minlength=4) / 20_000, probabilities, rtol=0, atol=0.02)
    torch.testing.assert_close(log_probs.exp(), probabilities[actions])


def test_the_times_of_acting_and_stepping_are_spans() -> None:
    envs, spans = CountingEnvs(), Spans()
    Player(ValueIsTheStep(), cast(Envs, envs), 0, spans=spans).play(make_rollout(envs, steps=6))
    assert {name: count for name, (count, _) in spans.totals().items()} == {"act": 7, "env_step": 6}


def test_a_player_counts_the_games_that_it_started_and_that_have_not_ended() -> None:
    """Games 0 and 2 end at steps 3, 6, ... and games 1 and 3 at steps 5, 10, ..."""
    envs = CountingEnvs()
    player, rollout = make_player(envs), make_rollout(envs, steps=2)
    left = []
    for _ in range(4):
        player.play(rollout)
        left.append(player.first_games)
    assert left == [4, 2, 0, 0]
