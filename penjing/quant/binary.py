"""Binary: the sign of each weight times a scale, 1 bit (XNOR-Net, arXiv:1603.05279).

The best scale is the mean size of the group's weights, here weighed by the importance of their inputs: exact, as the
best code is the sign whatever the scale.

Shapes: O outputs, I inputs, N groups a row, G inputs a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penjing.tensors.groups import Quantized, to_groups
from penjing.tensors.scales import stored


@dataclass(frozen=True, kw_only=True)
class Spec:
    """group_size: inputs that share a scale, a divisor of the row."""

    group_size: int = 64
    bits: ClassVar[int] = 1
    symmetric: ClassVar[bool] = True


def quantize(spec: Spec, weight_OI: Tensor, importance_I: Tensor) -> Quantized:
    """Quantize float32 weights, all finite."""
    importance_NG = to_groups(importance_I[None], spec.group_size)[0]
    importance_NG = importance_NG + importance_NG.mean().clamp_min(1e-30) * 1e-3  # inputs that calibration never saw
    weight_ONG = to_groups(weight_OI, spec.group_size)
    scale_ON = (weight_ONG.abs() * importance_NG).sum(-1) / importance_NG.sum(-1)
    return Quantized(code_ONG=(weight_ONG >= 0).to(torch.uint8), scale_ON=stored(scale_ON).half(), bits=spec.bits)
