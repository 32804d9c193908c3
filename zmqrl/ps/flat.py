"""Presents the parameters and the gradients of a torch module as two flat vectors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from zmqrl.ps.layout import Layout
from zmqrl.ps.wire.codec import FloatVector


class FlatParameters:
    """All trainable parameters of ``module``, in the order of ``named_parameters``.

    On the CPU nothing is copied: parameters are views of the loaded vector, and gradients are views of the caller's
    buffer. On another device each vector is copied in one transfer.
    """

    def __init__(self, module: nn.Module) -> None:
        self.named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if any(p.dtype != torch.float32 for _, p in self.named):
            raise TypeError("every trainable parameter must be float32")
        self.device = self.named[0][1].device
        self._vector: FloatVector | None = None
        self._on_device: torch.Tensor | None = None
        self._gradient: torch.Tensor | None = None

    def layout(self, shards: int) -> Layout:
        """The layout of these parameters, cut into ``shards`` slices."""
        return Layout.of(((name, p.shape) for name, p in self.named), shards)

    def vector(self) -> FloatVector:
        """A copy of the parameters: float32 (count,)."""
        with torch.no_grad():
            return torch.cat([p.detach().reshape(-1).cpu() for _, p in self.named]).numpy()

    def load(self, vector: FloatVector) -> None:
        """Set the parameters to ``vector``: float32 (count,)."""
        if self.device.type != "cpu":
            if self._on_device is None:
                self._on_device = torch.empty(vector.size, device=self.device)
                self._cut(self._on_device)
            self._on_device.copy_(torch.from_numpy(vector))
        elif vector is not self._vector:
            self._vector = vector
            self._cut(torch.from_numpy(vector))

    @contextmanager
    def gradient_in(self, buffer: FloatVector) -> Iterator[None]:
        """Clear ``buffer``, float32 (count,), and collect the gradients of the ``with`` block in it."""
        if self.device.type == "cpu":
            gradient = torch.from_numpy(buffer)
        else:
            if self._gradient is None:
                self._gradient = torch.empty(buffer.size, device=self.device)
            gradient = self._gradient
        gradient.zero_()
        for (_, parameter), piece in zip(self.named, self._pieces(gradient), strict=True):
            parameter.grad = piece
        yield
        if self.device.type != "cpu":
            torch.from_numpy(buffer).copy_(gradient)

    def _cut(self, vector: torch.Tensor) -> None:
        for (_, parameter), piece in zip(self.named, self._pieces(vector), strict=True):
            parameter.data = piece

    def _pieces(self, vector: torch.Tensor) -> list[torch.Tensor]:
        pieces = torch.split(vector, [p.numel() for _, p in self.named])
        return [piece.view(p.shape) for piece, (_, p) in zip(pieces, self.named, strict=True)]
