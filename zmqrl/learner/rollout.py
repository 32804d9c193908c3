"""Plays T steps in B environments. The memory for these steps is allocated once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from zmqrl.learner.activations import Activations
from zmqrl.learner.games import Envs, EnvSpec, Game
from zmqrl.learner.heads import head_of
from zmqrl.learner.statistics import MeanAndVariance, discounted_returns, moments_of, statistics_of
from zmqrl.observe.spans import Spans

CPU = torch.device("cpu")


class Rollout:
    """T steps of B environments. Each ``Player.play`` fills the rollout again.

    - ``observations`` (T, B, *shape), uint8 or float32: the inputs of the policy.
    - ``last_observations`` (B, *shape), after the last step.
    - ``actions`` (T, B, *shape), in the units of ``head``, the policy over actions.
    - ``log_probs``, ``values``, float32 (T, B): those of the policy that acted.
    - ``rewards``, float32 (T, B), for learning.
    - ``terminated``, ``truncated``, bool (T, B).
    - ``bootstrap_values``, float32 (T, B): V(final observation) where truncated, 0 elsewhere.
    - ``last_values``, float32 (B,): V(last observations).
    - ``advantages``, ``returns``, float32 (T, B), and ``explained_variance``, a scalar: set by ``Learner.prepare``.
    - ``number``: the number of earlier rollouts of the player.
    - ``activations``: those of the policy that acted, for a learner with the same parameters, or None.
    - ``moments``: mean and variance in this rollout, for each of the model's running statistics. With statistics,
      ``observations`` and ``rewards`` are scaled.

    Images have the shape (channels, height, width) and are channels-last in memory. The conversion here takes about 10
    us per sample. Before each forward pass, it would take 35 us.
    """

    def __init__(
        self,
        *,
        steps: int,
        num_envs: int,
        spec: EnvSpec,
        device: torch.device = CPU,
    ) -> None:
        def per_step(dtype: torch.dtype, shape: tuple[int, ...] = ()) -> Tensor:
            return torch.zeros(steps, num_envs, *shape, dtype=dtype, device=device)

        self.steps = steps
        self.num_envs = num_envs
        self.number = 0
        self.head = head_of(spec.actions)
        shape = spec.observation_shape
        self._is_image = len(shape) == 3
        stored_shape = (*shape[1:], shape[0]) if self._is_image else shape
        dtype = _torch_dtype(spec.observation_dtype)
        self._stored = torch.zeros((steps + 1) * num_envs, *stored_shape, dtype=dtype, device=device)
        self._gathered = self._stored[:0]
        observations = self._channels_first(self._stored.view(steps + 1, num_envs, *stored_shape))
        self.observations, self.last_observations = observations[:steps], observations[steps]
        self.actions = per_step(_torch_dtype(spec.actions.dtype), spec.actions.shape)
        self.log_probs = per_step(torch.float32)
        self.values = per_step(torch.float32)
        self.rewards = per_step(torch.float32)
        self.terminated = per_step(torch.bool)
        self.truncated = per_step(torch.bool)
        self.bootstrap_values = per_step(torch.float32)
        self.last_values = torch.zeros(num_envs, device=device)
        self.advantages = per_step(torch.float32)
        self.returns = per_step(torch.float32)
        self.explained_variance = torch.zeros((), device=device)
        self.activations: Activations | None = None
        self.moments: dict[str, MeanAndVariance] = {}

    @property
    def ends(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where games and the rollout end, and the values there, in the order of the functions in ``returns.py``."""
        return self.terminated, self.truncated, self.bootstrap_values, self.last_values

    def gather_observations(self, indices: Tensor) -> Tensor:
        """Observations (M, *shape) of the samples ``indices`` int64 (M,). Sample t * B + i is step t of game i.

        The next call overwrites the result.
        """
        if len(self._gathered) != len(indices):
            self._gathered = self._stored.new_empty((len(indices), *self._stored.shape[1:]))
        # Selecting rows of bytes takes 1.5 us per stack of frames, indexing the images 17 us.
        torch.index_select(self._stored.flatten(1), 0, indices, out=self._gathered.flatten(1))
        return self._channels_first(self._gathered)

    def _channels_first(self, stored: Tensor) -> Tensor:
        return stored.movedim(-1, -3) if self._is_image else stored


class Player:
    """Plays ``envs`` with ``model``. The games continue from one rollout to the next.

    ``first_games`` is the number of games that began with the player and have not ended yet.
    """

    def __init__(
        self,
        model: nn.Module,
        envs: Envs,
        seed: int,
        device: torch.device = CPU,
        spans: Spans | None = None,
        *,
        keeps_activations: bool = False,
        gamma: float = 0.99,
        check: Callable[[Tensor], None] | None = None,
    ) -> None:
        """``seed`` determines the games and the sampled actions. ``spans`` measures ``act`` and ``env_step``.

        With ``keeps_activations``, rollouts have ``activations``, and the model must be a ``ConvPolicy``. If the model
        has statistics of returns, ``gamma`` discounts them. ``check`` gets the outputs of the model at each step.
        """
        self.model = model
        self._check = check
        self._keeps_activations = keeps_activations
        self._activations: Activations | None = None
        self.envs = envs
        self._device = device
        self._spans = spans or Spans()
        self._generator = torch.Generator(device).manual_seed(seed)
        self._observations = envs.reset(seed)
        self._rollouts = self._agent_steps = 0
        self.first_games = envs.num_envs
        statistics = statistics_of(model)
        self._observed, self._returned = (
            (None, None) if statistics is None else (statistics.observations, statistics.returns)
        )
        self._gamma = gamma
        self._returns = np.zeros(envs.num_envs)

    def play(self, rollout: Rollout) -> list[Game]:
        """Play the next steps of every game into ``rollout``. Returns the games that ended."""
        games: list[Game] = []
        rollout.number = self._rollouts
        self._rollouts += 1
        rollout.bootstrap_values.zero_()
        if self._keeps_activations:
            self._activations = self._activations or Activations(rollout.steps * rollout.num_envs)
            self._activations.restart()
        rollout.activations = self._activations
        seen: list[np.ndarray] = []
        with torch.inference_mode():
            for t in range(rollout.steps):
                with self._spans("act"):
                    if self._observed is not None:
                        seen.append(self._observations)
                    self._put(rollout.observations[t], self._observations)
                    if rollout.activations is None:
                        outputs, rollout.values[t] = self.model(rollout.observations[t])
                    else:
                        rollout.activations.begin_batch(rollout.num_envs)
                        outputs, rollout.values[t] = self.model(rollout.observations[t], rollout.activations)
                    if self._check is not None:
                        self._check(outputs)
                    rollout.actions[t], rollout.log_probs[t] = rollout.head.sample(outputs, self._generator)
                    actions = self.envs.spec.actions.played(rollout.actions[t].cpu().numpy())
                with self._spans("env_step"):
                    step = self.envs.step(actions)
                self._observations = step.observations
                games += step.games
                self._agent_steps += 1
                self.first_games -= sum(game.agent_steps == self._agent_steps for game in step.games)
                for kept, new in (
                    (rollout.rewards, step.rewards),
                    (rollout.terminated, step.terminated),
                    (rollout.truncated, step.truncated),
                ):
                    kept[t] = torch.from_numpy(new)
                if step.final_observations:
                    stacked = torch.from_numpy(np.stack(list(step.final_observations.values())))
                    finals = channels_last(stacked.to(self._device))
                    if self._observed is not None:
                        finals = self._observed.scaled(finals)
                    truncated = torch.tensor(list(step.final_observations), device=self._device)
                    rollout.bootstrap_values[t, truncated] = self.model(finals)[1]
            with self._spans("act"):
                self._put(rollout.last_observations, self._observations)
                rollout.last_values.copy_(self.model(rollout.last_observations)[1])
                self._use_statistics(rollout, seen)
        return games

    def _put(self, kept: Tensor, observations: np.ndarray) -> None:
        put_frames(kept, observations)
        if self._observed is not None:
            kept.copy_(self._observed.scaled(kept))

    def _use_statistics(self, rollout: Rollout, seen: Sequence[np.ndarray]) -> None:
        """Set the ``moments`` of a full ``rollout``, whose observations were ``seen``, and scale its rewards.

        The scale of rewards includes this rollout, so that even the first rollout is scaled correctly.
        """
        if self._observed is not None:
            rollout.moments["observations"] = moments_of(np.concatenate(seen))
        if self._returned is not None:
            over = (rollout.terminated | rollout.truncated).cpu().numpy()
            sums, self._returns = discounted_returns(rollout.rewards.cpu().numpy(), over, self._gamma, self._returns)
            rollout.moments["returns"] = moments_of(sums.reshape(-1, 1))
            rollout.rewards.copy_(self._returned.scaled_rewards(rollout.rewards, rollout.moments["returns"]))


def _torch_dtype(dtype: np.dtype[np.generic]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def channels_last(observations: Tensor) -> Tensor:
    """``observations`` (B, *shape), with images in the memory format of a rollout."""
    return observations.contiguous(memory_format=torch.channels_last) if observations.ndim == 4 else observations


def put_frames(kept: Tensor, observations: np.ndarray) -> None:
    """Copy ``observations`` (B, *shape) into ``kept`` (B, *shape), which stores images channels-last."""
    if kept.device.type != "cpu" or observations.ndim != 4:
        kept.copy_(torch.from_numpy(observations))
        return
    # One channel of one image at a time fits into the first-level cache: 10 us per image. A copy with a permuted layout
    # costs 27 us in numpy and 89 us in torch.
    for kept_image, image in zip(kept.numpy(), observations, strict=True):
        for kept_channel, channel in zip(kept_image, image, strict=True):
            kept_channel[...] = channel
