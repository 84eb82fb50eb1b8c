"""Weights made of codes and scales as training needs them: gradients pass through the rounding.

weight = value * scale, the value being one that a code may stand for. A latent is a weight in steps: of its scale or,
where values are not one apart, of their mean distance times it. Its value is the nearest one, and the gradient takes
the rounding for the identity (straight through, arXiv:1308.3432). With latents in steps, a scale that changes takes its
weights along, and its gradient is sum(g * value): that of a learned step size (LSQ, arXiv:1902.08153,
g * (value - latent) for latents in weights) plus what moves the latents with it. Steps also make one learning rate fit
every matrix and all bits.

Shapes: O outputs, I inputs, N groups a row, G inputs a group, K values of a codebook.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from penjing.format.pack import level_values
from penjing.tensors.books import level
from penjing.tensors.groups import Quantized
from penjing.tensors.scales import stored

#: how far from the border of its code's cell a latent begins, in steps: rounding must give the code back
_INSIDE = 0.01


def values(quantized: Quantized) -> Tensor:
    """What the codes stand for, without the scale, float32 [O, N, G]."""
    one_ON = torch.ones_like(quantized.scale_ON)
    return dataclasses.replace(quantized, scale_ON=one_ON).dequantize().view(quantized.code_ONG.shape)


def product_dtype(device: str) -> torch.dtype:
    """What products of matrices are computed in now: weights made in it need no conversion."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


def relative(start: Tensor, change: Tensor, rate: float) -> Tensor:
    """`start` changed by a fraction: `change` 1 is `rate` more."""
    return start * (1.0 + rate * change)


def rounded_scale(scale_ON: Tensor, scale_bits: int) -> Tensor:
    """Scales as they will be stored, the gradient straight through."""
    return scale_ON + (stored(scale_ON.detach(), scale_bits) - scale_ON.detach())


class Grid:
    """The values that the codes of a matrix may stand for, apart from the scales: ordered, each with its code.

    `unit`: values to a step. Latents are in steps.
    """

    unit = 1.0

    def __init__(self, quantized: Quantized) -> None:
        self._like = quantized
        self._zero_ON1 = None if quantized.zero_ON is None else quantized.zero_ON.unsqueeze(-1).float()
        half, count = 1 << (quantized.bits - 1), 1 << quantized.bits
        self._even = (quantized.bits > 1 and quantized.levels == "uniform") or quantized.levels == "ternary"
        if self._zero_ON1 is not None:
            self._low, self._high = -self._zero_ON1, count - 1 - self._zero_ON1
            return
        if quantized.levels == "uniform" and quantized.bits > 1:
            value_K = torch.arange(count) - half
        else:
            book_K = None if quantized.book_K is None else quantized.book_K.cpu().numpy()
            value_K = torch.from_numpy(level_values(quantized.bits, quantized.levels, book_K))
        self._value_K, self._code_K = value_K.float().sort(stable=True)
        if not self._even:
            self.unit = float((self._value_K[-1] - self._value_K[0]) / (count - 1))
        step_K = self._value_K / self.unit
        self._border_K = (step_K[1:] + step_K[:-1]) / 2
        self._low, self._high = step_K[0], step_K[-1]

    def nearest(self, latent_ONG: Tensor) -> Tensor:
        """The value of each latent."""
        if self._even:
            return latent_ONG.round().clamp_(self._low, self._high)
        return level(latent_ONG, self._border_K, self._value_K)

    def confine_(self, latent_ONG: Tensor) -> None:
        """Bring latents back that have left the outermost cells: from further out they would not find back in time.

        Then no gradient needs to be cut off at the ends either.
        """
        latent_ONG.clamp_(self._low - 0.5, self._high + 0.5)

    def inside(self, latent_ONG: Tensor, value_ONG: Tensor) -> Tensor:
        """Latents moved into the cells of these values."""
        value_ONG = value_ONG / self.unit
        if self._even:
            return torch.minimum(torch.maximum(latent_ONG, value_ONG - 0.5 + _INSIDE), value_ONG + 0.5 - _INSIDE)
        edge = torch.tensor([torch.inf])
        low_K, high_K = torch.cat([-edge, self._border_K + _INSIDE]), torch.cat([self._border_K - _INSIDE, edge])
        at_ONG = torch.bucketize(value_ONG, self._border_K)
        found_ONG = torch.minimum(torch.maximum(latent_ONG, low_K[at_ONG]), high_K[at_ONG])
        self.confine_(found_ONG)
        return found_ONG

    def quantized(self, latent_ONG: Tensor, scale_ON: Tensor) -> Quantized:
        """Codes of the nearest values, and these scales as they are stored."""
        if self._zero_ON1 is not None:
            code_ONG = self.nearest(latent_ONG) + self._zero_ON1
        else:
            code_ONG = self._code_K[torch.bucketize(self.nearest(latent_ONG) / self.unit, self._border_K)]
        scale_ON = stored(scale_ON.detach(), self._like.scale_bits).half()
        return dataclasses.replace(self._like, code_ONG=code_ONG.to(torch.uint8), scale_ON=scale_ON)


def rounded_weight(latent_ONG: Tensor, scale_ON: Tensor, grid: Grid) -> Tensor:
    """[O, I] in the precision of products: each latent's nearest value times its scale, differentiable in both."""
    apply: Any = _Rounded.apply
    found: Tensor = apply(latent_ONG, scale_ON, grid, product_dtype(latent_ONG.device.type))
    return found


def scaled_weight(value_ONG: Tensor, scale_ON: Tensor, shift_ON: Tensor | None) -> Tensor:
    """[O, I] in the precision of products: (value - shift) * scale, differentiable in scale and shift."""
    apply: Any = _Scaled.apply
    found: Tensor = apply(value_ONG, scale_ON, shift_ON, product_dtype(scale_ON.device.type))
    return found


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent_ONG: Tensor, scale_ON: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
        weight_OI = grid.nearest(latent_ONG).mul_(scale_ON.unsqueeze(-1)).flatten(1).to(dtype)
        ctx.save_for_backward(weight_OI, scale_ON)
        ctx.unit = grid.unit
        return weight_OI

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        weight_OI, scale_ON = ctx.saved_tensors
        grad_ONG = incoming[0].float().view(*scale_ON.shape, -1)
        # sum(g * value) from the weights, which are there anyway
        along_ON = weight_OI.to(torch.float32, copy=True).view_as(grad_ONG).mul_(grad_ONG).sum(-1)
        return grad_ONG * (ctx.unit * scale_ON).unsqueeze(-1), along_ON.div_(scale_ON), None, None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value_ONG: Tensor, scale_ON: Tensor, shift_ON: Tensor | None, dtype: torch.dtype) -> Tensor:
        weight_ONG = value_ONG.float() if shift_ON is None else value_ONG - shift_ON.unsqueeze(-1)
        weight_OI = (weight_ONG * scale_ON.unsqueeze(-1)).flatten(1).to(dtype)
        ctx.save_for_backward(weight_OI, scale_ON)
        return weight_OI

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        weight_OI, scale_ON = ctx.saved_tensors
        grad_ONG = incoming[0].float().view(*scale_ON.shape, -1)
        shift_ON = grad_ONG.sum(-1).mul_(scale_ON).neg_() if ctx.needs_input_grad[2] else None
        along_ON = weight_OI.to(torch.float32, copy=True).view_as(grad_ONG).mul_(grad_ONG).sum(-1)
        return None, along_ON.div_(scale_ON), shift_ON, None
