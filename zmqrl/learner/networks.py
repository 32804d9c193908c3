"""The networks: from observations to state values and to the outputs for a policy over actions."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zmqrl.errors import UsageError, did_you_mean
from zmqrl.learner.activations import PLAIN, Activations, Plain
from zmqrl.learner.games import ActionSpace, BoxActions, EnvSpec
from zmqrl.learner.plugin import load_model
from zmqrl.learner.settings import HIDDEN, IMAGE_NETWORKS, VECTOR_NETWORK, NetworkConfig
from zmqrl.learner.statistics import add_statistics
from zmqrl.local.resources import BFLOAT16, cpu_flags

Compute = Literal["float32", "bfloat16"]

CPU = torch.device("cpu")
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


AS_IT_IS = NetworkConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class Conv:
    """One convolution without padding, then an optional 2x2 max-pool, then ReLU."""

    filters: int
    kernel: int
    stride: int = 1
    pool: bool = False


NATURE = (Conv(filters=32, kernel=8, stride=4), Conv(filters=64, kernel=4, stride=2), Conv(filters=64, kernel=3))

# Mnih et al. 2013 and 2015 (the "small" and the "nature" net), Adamski et al. 2018 (dba3c). "narrow" is the nature net
# with the hidden layer of dba3c's best run.
CONVOLUTIONS = {
    "small": (Conv(filters=16, kernel=8, stride=4), Conv(filters=32, kernel=4, stride=2)),
    "nature": NATURE,
    "narrow": NATURE,
    "dba3c": (
        Conv(filters=32, kernel=5, pool=True),
        Conv(filters=32, kernel=5, pool=True),
        Conv(filters=64, kernel=5, pool=True),
        Conv(filters=64, kernel=3),
    ),
}


class ConvPolicy(nn.Module):
    """Convolutions and one hidden layer, shared by actor and critic, and ``log_std`` for box actions.

    The parameters are float32. With bfloat16, a forward pass uses bfloat16 copies of the parameters, except those of
    actor and critic. After ``double()``, everything is float64. The hidden layer reads the output of the last
    convolution in the order height, width, channel.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        actions: ActionSpace,
        convolutions: Sequence[Conv],
        *,
        hidden: int,
        biases: bool,
        hidden_relu: bool,
        compute: Compute,
    ) -> None:
        """``biases`` applies to the convolutions and the hidden layer. Raises ValueError if the image is too small."""
        super().__init__()
        channels, height, width = observation_shape
        self.convs = nn.ModuleList()
        self.pools = [conv.pool for conv in convolutions]
        for conv in convolutions:
            layer = nn.Conv2d(channels, conv.filters, conv.kernel, conv.stride, bias=biases)
            self.convs.append(_orthogonal(layer, math.sqrt(2)))
            channels = conv.filters
            height, width = (((side - conv.kernel) // conv.stride + 1) // (1 + conv.pool) for side in (height, width))
            if min(height, width) < 1:
                raise ValueError("the image is smaller than the convolutions need")
        gain = math.sqrt(2) if hidden_relu else 1.0
        self.hidden = _orthogonal(nn.Linear(channels * height * width, hidden, bias=biases), gain)
        self.hidden_relu = hidden_relu
        self.actor = _orthogonal(nn.Linear(hidden, _actor_outputs(actions)), 0.01)
        self.critic = _orthogonal(nn.Linear(hidden, 1), 1.0)
        self.log_std = _log_std(actions)
        self.dtype = torch.bfloat16 if compute == "bfloat16" else torch.float32

    def forward(self, observations: Tensor, activations: Activations | None = None) -> tuple[Tensor, Tensor]:
        """Outputs float32 (B, A) and values float32 (B,) of observations uint8 or float (B, C, H, W).

        ``activations`` keeps the outputs of the layers, or provides them. uint8 observations are scaled from 0..255 to
        0..1, float observations are not. The call is fastest if observations are channels-last in memory, as in
        ``Rollout``: then the cast is the only pass over the data, apart from ``space_to_depth``.
        """
        # Scale the few weights instead of 28 KB of frames per sample. The stored weights stay unscaled, because Adam's
        # steps do not scale with the weights.
        layers = PLAIN if activations is None else activations
        scale = 1 / 255 if observations.dtype == torch.uint8 else 1.0
        block = self._block(observations) if activations is not None or torch.is_grad_enabled() else 1
        x = layers.converted(observations, self.dtype, block)
        for conv, pool in zip(self.convs, self.pools, strict=True):
            assert isinstance(conv, nn.Conv2d)
            weight = layers.parameter(conv.weight, scale, self.dtype, block)
            stride = (1, 1) if block > 1 else conv.stride
            x = layers.conv(x, weight, self._bias(layers, conv.bias), stride, relu=not pool)
            block = 1
            x = F.relu_(F.max_pool2d(x, 2)) if pool else x
            scale = 1.0
        x = x.permute(0, 2, 3, 1).flatten(1)
        weight = layers.parameter(self.hidden.weight, 1.0, self.dtype)
        x = layers.linear(x, weight, self._bias(layers, self.hidden.bias), relu=self.hidden_relu)
        x = x.to(self.actor.weight.dtype)
        return _with_log_std(self.actor(x), self.log_std), self.critic(x).squeeze(-1)

    def double(self) -> Self:
        """Convert parameters, computation and results to float64."""
        self.dtype = torch.float64
        return super().double()

    def _block(self, observations: Tensor) -> int:
        """The side of the blocks of pixels that the first convolution reads, or 1.

        With AMX, blocks make gradients faster: see ``benchmarks/pixel_blocks.py``. Without AMX, and in a forward pass
        alone, they do not. ``space_to_depth`` is fast only for bytes, in rows of 16.
        """
        first, (channels, height, width) = self.convs[0], observations.shape[1:]
        assert isinstance(first, nn.Conv2d)
        side = first.stride[0]
        fits = first.stride[1] == side and all(each % side == 0 for each in (*first.kernel_size, height, width))
        is_fast = side * channels == 16 and observations.dtype == torch.uint8 and observations.device.type == "cpu"
        return side if fits and is_fast and self.dtype == torch.bfloat16 and has_amx() else 1

    def _bias(self, layers: Activations | Plain, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else layers.parameter(bias, 1.0, self.dtype)


class VectorPolicy(nn.Module):
    """Two separate networks of two tanh layers, one for the actor and one for the critic, in float32.

    ``log_std`` exists only for box actions.
    """

    def __init__(self, observation_shape: Sequence[int], actions: ActionSpace, *, hidden: int) -> None:
        super().__init__()
        (inputs,) = observation_shape
        self.actor = _tanh_trunk(inputs, hidden, _actor_outputs(actions), head_gain=0.01)
        self.critic = _tanh_trunk(inputs, hidden, 1, head_gain=1.0)
        self.log_std = _log_std(actions)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs float32 (B, A) and values float32 (B,) of observations float32 (B, n)."""
        return _with_log_std(self.actor(observations), self.log_std), self.critic(observations).squeeze(-1)


def _actor_outputs(actions: ActionSpace) -> int:
    """The width of the actor's last layer: means for box actions, logits for others."""
    return len(actions.low) if isinstance(actions, BoxActions) else actions.outputs


def _log_std(actions: ActionSpace) -> nn.Parameter | None:
    """Log standard deviations (D,) that do not depend on the observation, for box actions."""
    return nn.Parameter(torch.zeros(actions.shape)) if isinstance(actions, BoxActions) else None


def _with_log_std(outputs: Tensor, log_std: Tensor | None) -> Tensor:
    return outputs if log_std is None else torch.cat((outputs, log_std.expand_as(outputs)), -1)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()  # the last bits of orthogonal weights depend on the number of threads
def make_model(
    name: str,
    spec: EnvSpec,
    network: NetworkConfig = AS_IT_IS,
    *,
    device: torch.device = CPU,
) -> nn.Module:
    """The network ``name`` for the games of ``spec`` on ``device``, initialized from torch's global random state.

    A name like ``module:function`` is a user-defined function: see ``load_model``. One CPU thread draws the parameters,
    so that a seed gives the same parameters on every device and with any number of cores. The network has the running
    statistics that ``spec`` uses.

    Raises UsageError if the network does not exist, cannot read the observations, or does not compute in bfloat16.
    """
    model = _bare_model(name, spec, network, device)
    add_statistics(model, spec)
    return model.to(device)


def _bare_model(name: str, spec: EnvSpec, network: NetworkConfig, device: torch.device) -> nn.Module:
    shape, actions = spec.observation_shape, spec.actions
    if ":" in name:
        if network != AS_IT_IS:
            raise UsageError(f"--model {name} has its own width and number format: remove all --network.* options.")
        return load_model(name, spec)
    if name not in HIDDEN:
        known = f"choose {', '.join(HIDDEN)}, or your own as module:function."
        raise UsageError(f"unknown model {name!r}{did_you_mean(name, HIDDEN)}; {known}")
    hidden = network.hidden or HIDDEN[name]
    unfit = f"model {name!r} does not fit observations of shape {shape}"
    if name == VECTOR_NETWORK:
        if len(shape) != 1:
            raise UsageError(f"{unfit}: it reads vectors; for images, use --model {IMAGE_NETWORKS}.")
        if network.compute == "bfloat16":
            raise UsageError("--network.compute bfloat16: model 'mlp' computes in float32 only.")
        return VectorPolicy(shape, actions, hidden=hidden)
    if len(shape) != 3:
        raise UsageError(
            f"{unfit}: it reads images (channels, height, width); use --model mlp for vectors, or "
            f"--envs.images --model {name} if the environment returns images."
        )
    # As in the original, the hidden layer of dba3c is linear, and this layer and the convolutions have no biases.
    seed_net = name == "dba3c"
    try:
        return ConvPolicy(
            shape,
            actions,
            CONVOLUTIONS[name],
            hidden=hidden,
            biases=not seed_net,
            hidden_relu=not seed_net,
            compute=fastest_compute(device) if network.compute == "auto" else network.compute,
        )
    except ValueError as error:
        raise UsageError(f"{unfit}: {error}; use a larger screen or another model.") from error


def compute_of(model: nn.Module) -> Compute | None:
    """The number format in which ``model`` computes. None for a user's own network, whose format is unknown."""
    if isinstance(model, ConvPolicy):
        return "bfloat16" if model.dtype == torch.bfloat16 else "float32"
    return "float32" if isinstance(model, VectorPolicy) else None


@cache
def fastest_compute(device: torch.device) -> Compute:
    """bfloat16 if the hardware supports it (about twice as fast), float32 if bfloat16 would be emulated."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # Torch's own check (mkldnn) also accepts AVX-512 without the bf16 instructions, which is slow.
    return "float32" if BFLOAT16.isdisjoint(cpu_flags()) else "bfloat16"


@cache
def has_amx() -> bool:
    """Whether the processor multiplies bfloat16 matrices in tiles."""
    return "amx_bf16" in cpu_flags()


def _tanh_trunk(inputs: int, hidden: int, outputs: int, *, head_gain: float) -> nn.Sequential:
    return nn.Sequential(
        _orthogonal(nn.Linear(inputs, hidden), math.sqrt(2)),
        nn.Tanh(),
        _orthogonal(nn.Linear(hidden, hidden), math.sqrt(2)),
        nn.Tanh(),
        _orthogonal(nn.Linear(hidden, outputs), head_gain),
    )


def _orthogonal(layer: Layer, gain: float) -> Layer:
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
