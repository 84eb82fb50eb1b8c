"""Learned codebook: the entries that serve a matrix best, by k-means weighted with importance (SqueezeLLM, 2306.07629).

SqueezeLLM learns a book for each row; here one 16-entry book serves a matrix, and groups keep their scales, which are
fitted again after each turn (`tensors.books`). Starts from what serves normally distributed weights.

Shapes: O outputs, I inputs, K entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from penjing.tensors.books import learned_book, search
from penjing.tensors.groups import Quantized


@dataclass(frozen=True, kw_only=True)
class Spec:
    """bits: 2 to 4. group_size: inputs that share a scale, a divisor of the row. turns: of scales and book."""

    bits: int = 4
    group_size: int = 64
    turns: int = 4
    symmetric: ClassVar[bool] = True
    levels: ClassVar[str] = "book"


def quantize(spec: Spec, weight_OI: Tensor, importance_I: Tensor, book_K: Tensor | None = None) -> Quantized:
    """Quantize float32 weights, all finite. A scale is infinite where the group's range is beyond float16."""
    if book_K is None:
        book_K = learned_book(weight_OI, importance_I, bits=spec.bits, group_size=spec.group_size, turns=spec.turns)
    return search(weight_OI, importance_I, book_K, bits=spec.bits, group_size=spec.group_size)
