"""Normal-float codebook: entries at equal shares of a normal distribution, denser where weights are (2305.14314).

QLoRA's construction for any of 2 to 4 bits: quantiles of both halves, zero among them, the largest one; rounded to the
8-bit entries that a book holds (0.4% of the largest). Scales are searched under the importance of inputs
(`tensors.books`) instead of covering each group.

Shapes: O outputs, I inputs, K entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from penjing.tensors.books import normal_book, search
from penjing.tensors.groups import Quantized


@dataclass(frozen=True, kw_only=True)
class Spec:
    """bits: 2 to 4. group_size: inputs that share a scale, a divisor of the row."""

    bits: int = 4
    group_size: int = 64
    symmetric: ClassVar[bool] = True
    levels: ClassVar[str] = "book"


def quantize(spec: Spec, weight_OI: Tensor, importance_I: Tensor, book_K: Tensor | None = None) -> Quantized:
    """Quantize float32 weights, all finite. A scale is infinite where the group's range is beyond float16."""
    book_K = normal_book(spec.bits) if book_K is None else book_K
    return search(weight_OI, importance_I, book_K, bits=spec.bits, group_size=spec.group_size)
