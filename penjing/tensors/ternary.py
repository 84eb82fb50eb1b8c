"""The best ternary codes and scale of each group, exactly (Ternary Weight Networks, arXiv:1605.04711).

For a scale s the best code of a weight is not zero where |w| > s / 2, whatever its importance h; so what is not zero
are the k largest of a group, and s = sum h|w| / sum h over them. All k are tried: the one with the largest
(sum h|w|)^2 / sum h has the smallest error. TWN and BitNet's absmean (2402.17764) take a rule of thumb for it.

Shapes: O outputs, I inputs, N groups a row, G inputs a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penjing.tensors.groups import Quantized, to_groups
from penjing.tensors.scales import stored

_BLOCK = 1 << 18  # weights sorted at a time


def quantize(weight_OI: Tensor, importance_I: Tensor, *, group_size: int, scale_bits: int = 16) -> Quantized:
    """Float32 weights, all finite."""
    importance_NG = to_groups(importance_I[None], group_size)[0]
    importance_NG = importance_NG + importance_NG.mean().clamp_min(1e-30) * 1e-3  # inputs that calibration never saw
    rows = max(1, _BLOCK // weight_OI.shape[1])
    blocks = [to_groups(block_OI, group_size) for block_OI in torch.split(weight_OI, rows)]
    scale_ON = stored(torch.cat([_best_scale(block_ONG, importance_NG) for block_ONG in blocks]), scale_bits)
    step_ONG = (to_groups(weight_OI, group_size) / scale_ON.unsqueeze(-1)).round().clamp(-1, 1)
    return Quantized(
        code_ONG=(step_ONG + 1).to(torch.uint8),
        scale_ON=scale_ON.half(),
        bits=2,
        levels="ternary",
        scale_bits=scale_bits,
    )


def _best_scale(weight_ONG: Tensor, importance_NG: Tensor) -> Tensor:
    size_ONG, order_ONG = weight_ONG.abs().sort(dim=-1, descending=True)
    felt_ONG = importance_NG.expand_as(size_ONG).gather(-1, order_ONG).double()
    mass_ONG, moment_ONG = felt_ONG.cumsum(-1), (felt_ONG * size_ONG).cumsum(-1)
    best_ON1 = (moment_ONG.square() / mass_ONG).argmax(-1, keepdim=True)
    return (moment_ONG.gather(-1, best_ON1) / mass_ONG.gather(-1, best_ON1)).squeeze(-1).float()
