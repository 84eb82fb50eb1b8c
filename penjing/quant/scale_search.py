"""Importance-weighted scale search: the scale of each group that costs the loss least, among several tries.

How a group is searched stands in `tensors.scales`; the importance of an input is that of `tensors.statistics`. The idea
is that of llama.cpp's importance matrix (its pull request 4861) and of AWQ (arXiv:2306.00978).

SmolLM2-135M, body at 4 bits in groups of 32, head untouched, held-out perplexity over the parent's: rounding to nearest
+34% symmetric, +21% asymmetric; this +10% and +8%.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from penjing.tensors.groups import Quantized
from penjing.tensors.scales import search


@dataclass(frozen=True, kw_only=True)
class Spec:
    """bits: 2, 3, 4, 5, 6 or 8. group_size: inputs that share a scale, a divisor of the row."""

    bits: int = 4
    group_size: int = 64
    symmetric: bool = True


def quantize(spec: Spec, weight_OI: torch.Tensor, importance_I: torch.Tensor) -> Quantized:
    """Quantize float32 weights, all finite. A scale is infinite where the group's range is beyond float16."""
    return search(weight_OI, importance_I, bits=spec.bits, group_size=spec.group_size, symmetric=spec.symmetric)
