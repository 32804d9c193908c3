"""Activations that are kept from acting for learning, where both use the same parameters and observations."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Activations:
    """The outputs of a network's layers, kept from acting, so that learning only computes their gradients.

    While acting, ``conv`` and ``linear`` compute one batch at a time and keep each result. In a pass that learns, each
    layer returns its kept results of all batches, joined as one large batch. The gradients are those of this large
    batch, up to rounding, as long as the parameters are the same.
    """

    def __init__(self) -> None:
        self._layers: list[list[Tensor]] = []
        self._next = 0
        self._learns = False

    def begin(self, *, learns: bool) -> None:
        """Begin a pass through the layers: with ``learns``, of all batches together, otherwise of the next batch."""
        self._next, self._learns = 0, learns

    def conv(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> Tensor:
        """As ``F.conv2d``."""
        if self._learns:
            return _apply(_KeptConv, x, weight, bias, stride, self._kept())
        return self._keep(F.conv2d(x, weight, bias, stride))

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As ``F.linear``."""
        if self._learns:
            return _apply(_KeptLinear, x, weight, bias, self._kept())
        return self._keep(F.linear(x, weight, bias))

    def _keep(self, output: Tensor) -> Tensor:
        if self._next == len(self._layers):
            self._layers.append([])
        self._kept().append(output)
        return output

    def _kept(self) -> list[Tensor]:
        self._next += 1
        return self._layers[self._next - 1]


class _KeptConv(torch.autograd.Function):
    """A convolution without padding whose output is known."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], kept: list[Tensor]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.biases = stride, None if bias is None else bias.shape
        return torch.cat(kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        found = torch.ops.aten.convolution_backward(
            gradient, x, weight, ctx.biases, ctx.stride, (0, 0), (1, 1), False, (0, 0), 1, ctx.needs_input_grad[:3]
        )
        return *found, None, None


class _KeptLinear(torch.autograd.Function):
    """A linear layer whose output is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: list[Tensor]) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.cat(kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        return gradient @ weight, gradient.T @ x, gradient.sum(0) if ctx.needs_input_grad[2] else None, None


def _apply(function: type[torch.autograd.Function], *inputs: Any) -> Tensor:
    output: Tensor = function.apply(*inputs)  # type: ignore[no-untyped-call]
    return output
