"""Keeps the activations of acting, for learning with the same parameters and observations."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Activations:
    """Stores the outputs of a network's layers during acting, so that learning computes only the gradients.

    In acting, each layer writes its result for each batch into memory for all batches. In learning, each layer returns
    this memory: the result of one large batch. While the parameters stay the same, the gradients are those of this
    batch, up to rounding. The memory is allocated once, and stores images channels-last.
    """

    def __init__(self, samples: int) -> None:
        """``samples`` is the number of samples in all batches together."""
        self._samples = samples
        self._layers: list[Tensor] = []
        self._next = self._begun = self._ended = 0
        self._learns = False
        self._acted_with: dict[int, Tensor] = {}

    def restart(self) -> None:
        """Forget all batches and parameters, because new ones follow."""
        self._begun = self._ended = 0
        self._acted_with.clear()

    def begin_batch(self, samples: int) -> None:
        """Begin a forward pass for acting, with the next ``samples`` samples."""
        self._next, self._learns = 0, False
        self._begun, self._ended = self._ended, self._ended + samples

    def begin_learning(self) -> None:
        """Begin a forward pass for learning, with all samples."""
        self._next, self._learns = 0, True

    def parameter(self, parameter: Tensor, scale: float, dtype: torch.dtype, block: int = 1) -> Tensor:
        """``scale`` times ``space_to_depth`` of ``parameter``, in ``dtype``. In acting, it is converted for the first
        batch only.
        """
        if self._learns:
            return PLAIN.parameter(parameter, scale, dtype, block)
        if id(parameter) not in self._acted_with:
            self._acted_with[id(parameter)] = PLAIN.parameter(parameter, scale, dtype, block)
        return self._acted_with[id(parameter)]

    def converted(self, observations: Tensor, dtype: torch.dtype, block: int) -> Tensor:
        """The input of the first layer: ``space_to_depth`` of the images ``observations``, converted to ``dtype``."""
        if self._learns:
            return self._all()
        images = space_to_depth(observations, block)
        return self._batch(images.shape, dtype).copy_(images)

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], *, relu: bool) -> Tensor:
        """Like ``F.conv2d``, followed by ``F.relu`` if ``relu`` is true."""
        if self._learns:
            return _apply(_KeptConv, x, weight, bias, stride, relu, self._all())
        return self._keep(F.conv2d(x, weight, bias, stride), relu=relu)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        """Like ``F.linear``, followed by ``F.relu`` if ``relu`` is true."""
        if self._learns:
            return _apply(_KeptLinear, x, weight, bias, relu, self._all())
        return self._keep(F.linear(x, weight, bias), relu=relu)

    def _keep(self, output: Tensor, *, relu: bool) -> Tensor:
        kept = self._batch(output.shape, output.dtype)
        return torch.clamp_min(output, 0, out=kept) if relu else kept.copy_(output)

    def _batch(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next layer's memory for this batch."""
        if self._next == len(self._layers):
            layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
            with torch.inference_mode(mode=False):  # otherwise it could not be part of a backward pass
                self._layers.append(torch.empty((self._samples, *shape[1:]), dtype=dtype, memory_format=layout))
        return self._all()[self._begun : self._ended]

    def _all(self) -> Tensor:
        """The next layer's memory for all batches."""
        self._next += 1
        return self._layers[self._next - 1]


class Plain:
    """The layers of a network that keeps no activations. The methods are those of ``Activations``."""

    def parameter(self, parameter: Tensor, scale: float, dtype: torch.dtype, block: int = 1) -> Tensor:
        return space_to_depth((parameter if scale == 1.0 else parameter * scale).to(dtype), block)

    def converted(self, observations: Tensor, dtype: torch.dtype, block: int) -> Tensor:
        return space_to_depth(observations, block).to(dtype, memory_format=torch.channels_last)

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], *, relu: bool) -> Tensor:
        x = F.conv2d(x, weight, bias, stride)
        return F.relu_(x) if relu else x

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        x = F.linear(x, weight, bias)
        return F.relu_(x) if relu else x


PLAIN = Plain()


def space_to_depth(images: Tensor, block: int) -> Tensor:
    """``images`` (B, C, H, W) as (B, block * block * C, H / block, W / block), channels-last in memory if block > 1.

    Each square of pixels becomes one pixel with more channels. If both images and weights of a convolution with stride
    ``block`` are rearranged, stride 1 gives its results, up to rounding. ``block`` must divide all heights and widths.
    """
    if block == 1:
        return images
    batch, channels, height, width = images.shape
    pixels = images.movedim(1, -1).contiguous()
    rows = pixels.view(batch, height // block, block, width // block, block * channels)
    if images.dtype == torch.uint8 and rows.shape[-1] == 16:
        # Copying 16 bytes as one element takes 5 us per image, single bytes 38 us, and F.pixel_unshuffle 166 us.
        blocks = rows.view(torch.complex128).transpose(2, 3).contiguous().view(torch.uint8)
    else:
        blocks = rows.transpose(2, 3)
    return blocks.flatten(3).movedim(-1, 1)


class _KeptConv(torch.autograd.Function):
    """A convolution without padding, and an optional ReLU, whose output is known."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], relu: bool, kept: Tensor
    ) -> Tensor:
        ctx.stride, ctx.biases = stride, None if bias is None else bias.shape
        return _saved(ctx, x, weight, kept, relu)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gradient = _restored(ctx, *gradients)
        found = torch.ops.aten.convolution_backward(
            gradient, x, weight, ctx.biases, ctx.stride, (0, 0), (1, 1), False, (0, 0), 1, ctx.needs_input_grad[:3]
        )
        return *found, None, None, None


class _KeptLinear(torch.autograd.Function):
    """A linear layer, and an optional ReLU, whose output is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, kept: Tensor) -> Tensor:
        return _saved(ctx, x, weight, kept, relu)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gradient = _restored(ctx, *gradients)
        bias = gradient.sum(0) if ctx.needs_input_grad[2] else None
        return gradient @ weight, gradient.T @ x, bias, None, None


def _saved(ctx: Any, x: Tensor, weight: Tensor, kept: Tensor, relu: bool) -> Tensor:
    output = kept.detach()  # autograd marks the returned tensor, but the memory itself must stay writable
    ctx.relu = relu
    ctx.save_for_backward(x, weight, output)
    return output


def _restored(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The input and the weight of a layer, and the gradient of its output before the ReLU."""
    x, weight, output = ctx.saved_tensors
    return x, weight, torch.ops.aten.threshold_backward(gradient, output, 0) if ctx.relu else gradient


def _apply(function: type[torch.autograd.Function], *inputs: Any) -> Tensor:
    output: Tensor = function.apply(*inputs)  # type: ignore[no-untyped-call]
    return output
