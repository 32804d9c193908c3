"""Loads a user-defined model or loss, given as ``module:function``, and tests it before use."""

import math
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from zmqrl.errors import UsageError, blaming, load_function, require
from zmqrl.learner.games import ActionSpace, BoxActions, EnvSpec
from zmqrl.learner.heads import Head, head_of
from zmqrl.learner.losses import LEARNER_METRICS, Batch, Loss
from zmqrl.learner.rollout import channels_last
from zmqrl.learner.settings import Algorithm
from zmqrl.observe.reports import MOST_FIGURES, NAME
from zmqrl.words import counted

SAMPLES = 4
MOST_STATS = MOST_FIGURES - len(LEARNER_METRICS)


def seed_global_generators(seed: int) -> None:
    """Seed, from 0 to 2^32 - 1, the generators that a user's own model, loss or environment can draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from the global generators as after :func:`seed_global_generators`. Preserves the caller's random state."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            seed_global_generators(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def blaming_own(model: str, loss: str | None = None) -> AbstractContextManager[None]:
    """Turn exceptions of the user's own ``model`` and ``loss`` into a UsageError, like :func:`zmqrl.errors.blaming`."""
    own = [f"--model {model}"] if ":" in model else []
    own += [f"--loss {loss}"] if loss is not None else []
    return blaming(f"{' or '.join(own)} fails") if own else nullcontext()


def load_model(reference: str, spec: EnvSpec) -> nn.Module:
    """The network that the function ``reference`` returns for ``(spec.observation_shape, spec.actions.outputs)``.

    Its ``forward`` takes observations: uint8 (B, C, H, W) from 0 to 255, channels-last in memory, or float32 (B, n). It
    returns outputs float32 (B, spec.actions.outputs), as ``ActionSpace`` describes them, and values float32 (B,).
    Logits can be -inf.

    Raises UsageError if a test call fails, with several observations or with one, or its backward pass.
    """
    blame = f"--model {reference}"
    make, shape, actions = load_function(blame, reference), spec.observation_shape, spec.actions
    observations = _observations(spec)
    normalized = "normalized " if spec.normalizes_observations else ""
    with blaming(f"{blame} fails for {normalized}observations of shape {shape}"):
        model = make(shape, actions.outputs)
        if not isinstance(model, nn.Module):
            raise UsageError(f"{blame} returned {_kind(model)}, not a torch.nn.Module.")
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for count in (SAMPLES, 1):
            given = observations[:count].clone()
            outputs = model(given)
            if not torch.equal(given, observations[:count]):
                raise UsageError(f"{blame} changes its observations in place: use x = x / 255, not x /= 255.")
            _check_outputs(blame, outputs, count, actions)
            for name, buffer in model.named_buffers():
                if not torch.equal(buffer, buffers[name]):
                    raise UsageError(
                        f"{blame} changes its buffer {name} in forward, as batch normalization does: "
                        "workers share parameters only, so use another layer."
                    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters or any(parameter.dtype != torch.float32 for parameter in parameters):
        raise UsageError(f"{blame} must have trainable parameters, all of them float32.")
    with blaming(f"{blame} fails in its backward pass"):
        torch.autograd.backward(sum(output.sum() for output in outputs))
    model.zero_grad()
    return model


def _check_outputs(blame: str, outputs: object, count: int, actions: ActionSpace) -> None:
    """Raise UsageError if ``outputs``, for ``count`` observations, are not logits and values."""
    expected = [(count, actions.outputs), (count,)]
    if not isinstance(outputs, tuple) or [_shape(output) for output in outputs] != expected:
        raise UsageError(
            f"{blame} returned {_kind(outputs)} for {counted(count, 'observation')}: it must return a tuple of float32 "
            f"logits {expected[0]} and values {expected[1]}."
        )
    logits, values = outputs
    masks = not isinstance(actions, BoxActions)
    if not (values.isfinite().all() and (logits.isfinite() | (logits == -math.inf) & masks).all()):
        raise UsageError(f"{blame} returned logits or values that are not finite.")


def outputs_of(reference: str, model: nn.Module, observations: Tensor, actions: ActionSpace) -> Tensor:
    """Outputs float32 (B, actions.outputs) of the ``model`` of ``reference`` for ``observations`` (B, ...).

    Raises UsageError if the user's code raises an exception, if the outputs have another shape, and like
    ``check_outputs``.
    """
    blame, count = f"--model {reference}", len(observations)
    with blaming(f"{blame} fails for observations of shape {tuple(observations.shape[1:])}"):
        outputs, _ = model(observations)
    if _shape(outputs) != (count, actions.outputs):
        raise UsageError(
            f"{blame} returned {_kind(outputs)} as logits for a batch of {count}: "
            f"they must be float32 {(count, actions.outputs)}."
        )
    assert isinstance(outputs, Tensor)
    check_outputs(reference, head_of(actions), outputs)
    return outputs


def check_outputs(reference: str, head: Head, outputs: Tensor) -> None:
    """Raise UsageError if ``head`` cannot choose actions with the ``outputs`` (B, A) of the model ``reference``."""
    require(
        head.accepts(outputs),
        f"--model {reference} returned outputs with which no action can be chosen: NaN, inf, or only -inf.",
    )


def load_loss(reference: str, config: Algorithm, actions: ActionSpace) -> Loss:
    """The function ``reference``, with the signature of ``ppo_loss``.

    Raises UsageError if a call with ``actions`` fails.
    """
    blame = f"--loss {reference}"
    loss = load_function(blame, reference)
    outputs = torch.linspace(-1, 1, actions.outputs * SAMPLES).view(SAMPLES, actions.outputs).requires_grad_()
    values = torch.linspace(-1, 1, SAMPLES).requires_grad_()
    batch = Batch(
        actions=torch.from_numpy(np.zeros((SAMPLES, *actions.shape), actions.dtype)),
        log_probs=torch.full((SAMPLES,), -1.0),
        advantages=torch.linspace(1, -1, SAMPLES),
        returns=torch.linspace(0, 1, SAMPLES),
        head=head_of(actions),
    )
    with blaming(f"{blame} fails"):
        result = loss(outputs, values, batch, config, config.entropy_coefficient)
    match result:
        case (Tensor(shape=(), requires_grad=True), {**stats}) if all(_shape(stat) == () for stat in stats.values()):
            if unfit := [name for name in stats if not NAME.fullmatch(str(name)) or name in LEARNER_METRICS]:
                raise UsageError(
                    f"{blame} reports {unfit[0]!r}: a name must have at most 40 lower-case letters, digits and _, and "
                    f"must not be one of the learner's names ({', '.join(LEARNER_METRICS)})."
                )
            if len(stats) > MOST_STATS:
                raise UsageError(f"{blame} reports {len(stats)} values: the limit is {MOST_STATS}.")
            return loss
    raise UsageError(
        f"{blame} returned {_kind(result)}: it must return a scalar tensor computed from logits and values, and "
        "a dict of float32 scalars to report."
    )


def _observations(spec: EnvSpec) -> Tensor:
    """Observations (SAMPLES, *shape) like those of a rollout. Normalized ones are numbers from -1 to 1."""
    shape = spec.observation_shape
    if spec.drawn is not None and not spec.normalizes_observations:
        rng = np.random.default_rng(0)
        return channels_last(torch.from_numpy(np.stack([spec.drawn(rng) for _ in range(SAMPLES)])))
    if len(shape) != 3:
        return torch.linspace(-1, 1, SAMPLES * math.prod(shape)).view(SAMPLES, *shape)
    channels, height, width = shape
    frames = torch.arange(SAMPLES * height * width * channels) % 256
    return frames.to(torch.uint8).view(SAMPLES, height, width, channels).movedim(-1, 1)


def _shape(output: object) -> tuple[int, ...] | None:
    return tuple(output.shape) if isinstance(output, Tensor) and output.dtype == torch.float32 else None


def _kind(value: object) -> str:
    """``value`` in a few words: ``a tuple of Tensor float32 (4, 2) and NoneType``."""
    if isinstance(value, Tensor):
        return f"Tensor {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple) and len(value) in (1, 2, 3):
        return f"a tuple of {' and '.join(map(_kind, value))}"
    return type(value).__name__
