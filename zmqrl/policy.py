"""A trained policy from a checkpoint: it turns observations into actions."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from zmqrl.checkpoint import PolicyWeights, checkpoints, name_of, newest
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.learner.games import EnvSpec
from zmqrl.rundir import RunDirectory, not_a_run

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Policy:
    """The policy of a run at ``version``, after ``wall_s`` seconds and ``agent_steps`` agent steps of training.

    The policy computes in float64 on the CPU, so that the same seeds give the same games on every machine. In float32,
    the last digits of a logit depend on the processor's vector width, the number of threads and the rest of the batch.
    They sometimes change an action, and so the rest of the game. In float64, such differences are about 1e-15. A user's
    own network computes with the dtype of training, because its code may require float32.
    """

    config: Config
    version: int
    wall_s: float
    agent_steps: int
    spec: EnvSpec
    model: "nn.Module"

    @property
    def env_id(self) -> str:
        """The environment that the policy was trained in."""
        return self.config.env

    def act(
        self, observations: npt.ArrayLike, rng: np.random.Generator | None = None, greedy: bool = False
    ) -> np.ndarray | int:
        """Actions for ``observations`` (B, *shape), or one action for a single observation (*shape).

        Images are uint8 (B, channels, height, width) from 0 to 255. Other observations are vectors (B, n). Actions are
        sampled with ``rng`` (default: unseeded). With ``greedy``, each action is the most probable one.

        Actions are in the form that the environment takes: Discrete actions are (B,) or one int, and MultiDiscrete
        actions have the shape of the action space, both with its dtype. MultiBinary actions are int64 and Box actions
        float32, or float16 if the environment takes no others, each with the shape of the action space.

        Raises UsageError for observations of another shape or dtype, for numbers that are not finite, and if a user's
        own network fails or returns outputs with which no action can be chosen.
        """
        import torch

        from zmqrl.learner.heads import head_of

        seen = np.asarray(observations)
        shape, dtype = self.spec.observation_shape, self.spec.observation_dtype
        is_one = seen.shape == shape
        batch = seen[np.newaxis] if is_one else seen
        casting: Literal["safe", "same_kind"] = "same_kind" if dtype.kind == "f" else "safe"
        if batch.shape[1:] != shape or not np.can_cast(batch.dtype, dtype, casting):
            raise UsageError(
                f"the observations are {seen.dtype} {seen.shape}, "
                f"but the policy acts on {dtype} {shape} or a batch of them."
            )
        with np.errstate(over="ignore"):
            inputs = torch.from_numpy(batch.astype(dtype))  # vectors are rounded to float32, as in training
        if dtype.kind == "f" and not inputs.isfinite().all():
            raise UsageError("the observations have numbers that are not finite as float32.")
        head = head_of(self.spec.actions)
        with torch.inference_mode():
            outputs = self._outputs(inputs)
            chosen = head.best(outputs) if greedy else head.drawn(outputs, rng or np.random.default_rng())
        actions = self.spec.actions.played(chosen)
        if not is_one:
            return actions
        return actions[0] if self.spec.actions.shape else int(actions[0])

    def for_another_thread(self) -> "Policy":
        """The same policy, with another instance of a user's own network, which may keep features on itself.

        Both share the memory of the parameters. The network is made again: in a copy, a hook could still refer to the
        original.
        """
        if not _is_own(self.config):
            return self
        model = _made(self.config, self.spec)
        for parameter, known in zip(model.parameters(), self.model.parameters(), strict=True):
            parameter.data = known.data
        return replace(self, model=model.eval())

    def _outputs(self, inputs: "Tensor") -> "Tensor":
        from zmqrl.learner.plugin import outputs_of
        from zmqrl.learner.rollout import channels_last
        from zmqrl.learner.statistics import scaled_observations

        if _is_own(self.config):
            seen = scaled_observations(self.model, channels_last(inputs))
            return outputs_of(self.config.model, self.model, seen, self.spec.actions)
        outputs: Tensor
        exact = inputs.double() if inputs.is_floating_point() else inputs
        outputs, _ = self.model(scaled_observations(self.model, exact))
        return outputs


def load_policy(run: str | Path, version: int | None = None) -> Policy:
    """Load the policy of the run directory ``run`` from its newest checkpoint, or from that of ``version``.

    This makes the environment of the run in the calling process, to find its spaces, and closes it again. Programs that
    the environment leaves behind are children of the caller, and zmqrl does not end them.

    Raises UsageError if the run or the checkpoint does not exist, if a file is damaged, and if a user's own network
    fails.
    """
    directory = RunDirectory(Path(run))
    if not directory.config.exists():
        raise not_a_run(run)
    config = Config.read(directory.config)
    weights = _weights(directory.checkpoints, version)
    # The import of torch takes seconds, and most errors come before.
    from zmqrl.learner.envs import describe_env
    from zmqrl.ps.flat import FlatParameters

    spec = describe_env(config.env, config.envs)
    model = _made(config, spec)
    parameters = FlatParameters(model)
    if parameters.layout(1).tensors != weights.layout.tensors:
        raise UsageError(f"{run}: checkpoint {weights.version} does not match the network in config.json.")
    parameters.load(weights.vector)
    return Policy(
        config=config,
        version=weights.version,
        wall_s=weights.wall_s,
        agent_steps=weights.agent_steps,
        spec=spec,
        model=(model if _is_own(config) else model.double()).eval(),
    )


def _made(config: Config, spec: EnvSpec) -> "nn.Module":
    """The network of a run with its initial parameters. A user's own has the same buffers as in the workers."""
    from zmqrl.learner.networks import make_model
    from zmqrl.learner.plugin import seeded

    with seeded(config.seed):
        return make_model(config.model, spec, config.network)


def _is_own(config: Config) -> bool:
    return ":" in config.model


def _weights(root: Path, version: int | None) -> PolicyWeights:
    """Read the weights of ``version``, by default the newest one, from the checkpoints under ``root``."""

    def advice(whole: Path, _: object) -> str:
        return f"Checkpoint {whole.stem} is intact: use it with --checkpoint {int(whole.stem[1:])}."

    if version is None and (weights := newest(root, PolicyWeights.read, advice)) is not None:
        return weights
    found = {path.stem: path for path in checkpoints(root)}
    if not found:
        raise UsageError(f"there is no checkpoint in {root} yet.")
    assert version is not None
    if name_of(version) not in found:
        raise UsageError(f"there is no checkpoint of version {version} in {root}: choose one of {', '.join(found)}.")
    return PolicyWeights.read(found[name_of(version)])
