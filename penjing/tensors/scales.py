"""The scale of each group that costs least, among several tries: rounding, then the least-squares scale, then rounding.

The error counts each input by its importance: the inputs that the loss feels choose. Symmetric scales may have either
sign: whichever extreme is larger gets the code -2^(bits-1), the one without a mirror image.

Shapes: O outputs, I inputs, N groups a row, G inputs a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penjing.format.scales import LARGEST, SMALLEST
from penjing.tensors.groups import Quantized, to_groups

#: first scales, as fractions of the one that just covers the group's range
_STARTS = tuple(0.7 + 0.05 * n for n in range(8))
#: weights worked on at a time: what stays in a cache is several times faster
_BLOCK = 1 << 16
_SMALLEST = 2.0**-24  # of the positive float16


def search(
    weight_OI: Tensor, importance_I: Tensor, *, bits: int, group_size: int, symmetric: bool, scale_bits: int = 16
) -> Quantized:
    """Codes and scales of float32 weights, all finite. A scale is infinite where the range is beyond float16."""
    importance_NG = to_groups(importance_I[None], group_size)[0]
    importance_NG = importance_NG + importance_NG.mean().clamp_min(1e-30) * 1e-3  # inputs that calibration never saw
    rows = max(1, _BLOCK // weight_OI.shape[1])
    blocks = [
        _search(bits, symmetric, scale_bits, to_groups(block_OI, group_size), importance_NG)
        for block_OI in torch.split(weight_OI, rows)
    ]
    return Quantized(
        code_ONG=torch.cat([block.code_ONG.to(torch.uint8) for block in blocks]),
        scale_ON=torch.cat([block.scale_ON.half() for block in blocks]),
        zero_ON=None if symmetric else torch.cat([block.zero_ON.to(torch.uint8) for block in blocks]),
        bits=bits,
        scale_bits=scale_bits,
    )


def stored(scale_ON: Tensor, scale_bits: int = 16) -> Tensor:
    """As float16 holds it, or 8 bits do (format/scales.py), up to their largest; never zero."""
    half_ON = scale_ON.half()
    if scale_bits == 16:
        stored_ON = half_ON.float()
        return torch.where(stored_ON == 0, torch.full_like(stored_ON, _SMALLEST), stored_ON)
    magnitude_ON = half_ON.view(torch.int16) & 0x7FFF
    kept_ON = magnitude_ON + 0x3F + (magnitude_ON >> 7 & 1) & ~0x7F  # to the nearest, of two the even one
    return kept_ON.view(torch.float16).float().clamp(SMALLEST, LARGEST).copysign(scale_ON)


def covering(
    weight_ONG: Tensor, *, bits: int, symmetric: bool, part: float = 1.0, scale_bits: int = 16
) -> tuple[Tensor, Tensor]:
    """scale_ON and zero_ON that just cover `part` of each group's range, zero always in it."""
    low_ON, high_ON = weight_ONG.amin(-1).clamp(max=0), weight_ONG.amax(-1).clamp(min=0)
    most, half = (1 << bits) - 1, 1 << (bits - 1)
    if symmetric:
        scale_ON = stored(part * torch.where(high_ON > -low_ON, -high_ON, -low_ON) / half, scale_bits)
        return scale_ON, torch.full_like(scale_ON, half)
    scale_ON = stored(part * (high_ON - low_ON) / most, scale_bits)
    return scale_ON, (-low_ON / scale_ON).round_().clamp_(0, most)


def steps(weight_ONG: Tensor, scale_ON: Tensor, zero_ON: Tensor, bits: int) -> Tensor:
    """code - zero of each weight."""
    zero_ON1 = zero_ON.unsqueeze(-1)
    return (weight_ONG / scale_ON.unsqueeze(-1)).round_().clamp_(-zero_ON1, (1 << bits) - 1 - zero_ON1)


def least_squares(
    weight_ONG: Tensor,
    step_ONG: Tensor,
    scale_ON: Tensor,
    importance_NG: Tensor | None = None,
    scale_bits: int = 16,
) -> Tensor:
    """The scale of each group that brings its steps closest to its weights; `scale_ON` where all steps are zero."""
    weighted_ONG = step_ONG if importance_NG is None else step_ONG * importance_NG
    moment_ON = (weighted_ONG * step_ONG).sum(-1)
    fitted_ON = (weighted_ONG * weight_ONG).sum(-1) / moment_ON.clamp_min(1e-30)
    return torch.where(moment_ON > 0, stored(fitted_ON, scale_bits), scale_ON)


def _search(bits: int, symmetric: bool, scale_bits: int, weight_ONG: Tensor, importance_NG: Tensor) -> _Try:
    best: _Try | None = None
    for part in _STARTS:
        scale_ON, zero_ON = covering(weight_ONG, bits=bits, symmetric=symmetric, part=part, scale_bits=scale_bits)
        best = _Try(weight_ONG, importance_NG, scale_ON, zero_ON, bits, scale_bits).better(best)
    assert best is not None
    return best


class _Try:
    """The codes that a first scale leads to, and their weighted error."""

    def __init__(
        self,
        weight_ONG: Tensor,
        importance_NG: Tensor,
        scale_ON: Tensor,
        zero_ON: Tensor,
        bits: int,
        scale_bits: int,
    ) -> None:
        step_ONG = steps(weight_ONG, scale_ON, zero_ON, bits)
        self.scale_ON = least_squares(weight_ONG, step_ONG, scale_ON, importance_NG, scale_bits)
        self.zero_ON = zero_ON
        step_ONG = steps(weight_ONG, self.scale_ON, zero_ON, bits)
        self.code_ONG = step_ONG + zero_ON.unsqueeze(-1)
        error_ONG = (step_ONG * self.scale_ON.unsqueeze(-1)).sub_(weight_ONG).square_()
        self.error_ON = error_ONG.mul_(importance_NG).sum(-1)

    def better(self, other: _Try | None) -> _Try:
        """Group by group the one with the smaller error, the earlier one where they are equal."""
        if other is None:
            return self
        wins_ON = self.error_ON < other.error_ON
        for name in ("scale_ON", "zero_ON", "error_ON"):
            setattr(self, name, torch.where(wins_ON, getattr(self, name), getattr(other, name)))
        self.code_ONG = torch.where(wins_ON.unsqueeze(-1), self.code_ONG, other.code_ONG)
        return self
