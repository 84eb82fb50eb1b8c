"""Every weight by itself, under any levels: the scales that cost least, and the nearest codes.

Shapes: O outputs, I inputs, K entries of a book.
"""

from __future__ import annotations

from torch import Tensor

from penjing.tensors import books, scales, ternary
from penjing.tensors.groups import Quantized


def rounded(
    weight_OI: Tensor,
    importance_I: Tensor,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = True,
    levels: str = "uniform",
    book_K: Tensor | None = None,
) -> Quantized:
    """Codes of float32 weights, all finite, errors weighed by the input's importance.

    `levels` and `bits`: as of a `format.pack.Layout`. `book_K`: of levels "book", which is learned where there is none.
    """
    if levels == "ternary":
        return ternary.quantize(weight_OI, importance_I, group_size=group_size)
    if levels == "book":
        if book_K is None:
            book_K = books.learned_book(weight_OI, importance_I, bits=bits, group_size=group_size)
        return books.search(weight_OI, importance_I, book_K, bits=bits, group_size=group_size)
    return scales.search(weight_OI, importance_I, bits=bits, group_size=group_size, symmetric=symmetric)
