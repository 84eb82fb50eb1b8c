"""Ternary: -1, 0 or +1 times a scale, 1.6 bits as stored, chosen exactly (Ternary Weight Networks, 1605.04711).

How, stands in `tensors.ternary`. Each weight by itself: `gptq` with levels=ternary lets inputs make up for each other.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from penjing.tensors import ternary
from penjing.tensors.groups import Quantized


@dataclass(frozen=True, kw_only=True)
class Spec:
    """group_size: inputs that share a scale, a divisor of the row."""

    group_size: int = 64
    bits: ClassVar[int] = 2
    symmetric: ClassVar[bool] = True
    levels: ClassVar[str] = "ternary"


def quantize(spec: Spec, weight_OI: Tensor, importance_I: Tensor) -> Quantized:
    """Quantize float32 weights, all finite."""
    return ternary.quantize(weight_OI, importance_I, group_size=spec.group_size)
