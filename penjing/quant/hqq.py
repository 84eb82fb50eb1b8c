"""Half-quadratic quantization: scales and zero points that a few large errors do not pull along, without any text.

Minimizes sum |w - (code - zero) * scale|^p with p < 1 by turns: `shrunk`, the part of the error that is taken for an
outlier, has a closed form (generalized soft threshold); then the zero point and the scale are those that fit the rest,
and codes are rounded anew. From "Half-Quadratic Quantization of Large Machine Learning Models" (Badri and Shaji, 2023,
https://mobiusml.github.io/hqq_blog/), where scales stay those of rounding to nearest and zero points are fractions.
Here zero points are whole codes, as they are stored, so scales move too. A group keeps the best that it saw.

Shapes: O outputs, I inputs, N groups a row, G inputs a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.tensors.groups import Quantized, to_groups
from penjing.tensors.scales import covering, least_squares, steps

#: weights worked on at a time: what stays in a cache is several times faster
_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Spec:
    """bits: 2, 3, 4, 5, 6 or 8. group_size: inputs that share a scale, a divisor of the row.

    norm: p. turns: how many at most. firmness: of an error x, in steps, what exceeds |x|^(p-1) / firmness is taken for
    an outlier; it grows by 1% a turn.
    """

    bits: int = 4
    group_size: int = 64
    symmetric: bool = False
    norm: float = 0.7
    turns: int = 20
    firmness: float = 10.0


def quantize(spec: Spec, weight_OI: Tensor) -> Quantized:
    """Quantize float32 weights, all finite. A scale is infinite where the group's range is beyond float16."""
    rows = max(1, _BLOCK // weight_OI.shape[1])
    blocks = [_solve(spec, to_groups(block_OI, spec.group_size)) for block_OI in torch.split(weight_OI, rows)]
    code_ONG, scale_ON, zero_ON = (torch.cat(pieces) for pieces in zip(*blocks, strict=True))
    return Quantized(
        code_ONG=code_ONG.to(torch.uint8),
        scale_ON=scale_ON.half(),
        zero_ON=None if spec.symmetric else zero_ON.to(torch.uint8),
        bits=spec.bits,
    )


def _solve(spec: Spec, weight_ONG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zero points, in float."""
    scale_ON, zero_ON = covering(weight_ONG, bits=spec.bits, symmetric=spec.symmetric)
    best_scale_ON, best_zero_ON = scale_ON, zero_ON
    least_ON = torch.full_like(scale_ON, torch.inf)
    for turn in range(spec.turns + 1):
        step_ONG = steps(weight_ONG, scale_ON, zero_ON, spec.bits)
        error_ONG = weight_ONG - step_ONG * scale_ON.unsqueeze(-1)
        cost_ON = error_ONG.abs().pow(spec.norm).sum(-1)
        better_ON = cost_ON < least_ON
        least_ON = torch.where(better_ON, cost_ON, least_ON)
        best_scale_ON = torch.where(better_ON, scale_ON, best_scale_ON)
        best_zero_ON = torch.where(better_ON, zero_ON, best_zero_ON)
        rest_ONG = weight_ONG - _outliers(error_ONG, scale_ON, spec.norm, spec.firmness * 1.01**turn)
        if not spec.symmetric:
            code_ONG = step_ONG + zero_ON.unsqueeze(-1)
            centre_ON = (code_ONG - rest_ONG / scale_ON.unsqueeze(-1)).mean(-1)
            zero_ON = centre_ON.round_().clamp_(0, (1 << spec.bits) - 1)
            step_ONG = code_ONG - zero_ON.unsqueeze(-1)
        scale_ON = least_squares(rest_ONG, step_ONG, scale_ON)
    step_ONG = steps(weight_ONG, best_scale_ON, best_zero_ON, spec.bits)
    return step_ONG + best_zero_ON.unsqueeze(-1), best_scale_ON, best_zero_ON


def _outliers(error_ONG: Tensor, scale_ON: Tensor, norm: float, firmness: float) -> Tensor:
    """What remains of an error when |error|^p is charged for it: nothing of small ones, nearly all of large ones."""
    step_ON1 = scale_ON.abs().unsqueeze(-1)
    size_ONG = error_ONG.abs() / step_ON1
    kept_ONG = (size_ONG - size_ONG.clamp_min(1e-9).pow(norm - 1) / firmness).clamp_min_(0)
    return error_ONG.sign() * kept_ONG * step_ON1
