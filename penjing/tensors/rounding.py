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
    scale_bits: int = 16,
    book_K: Tensor | None = None,
) -> Quantized:
    """Codes of float32 weights, all finite, errors weighed by the input's importance.

    `bits` to `scale_bits`: as of a `format.pack.Layout`. `book_K`: of levels "book", which is learned where there is
    none.
    """
    groups = {"group_size": group_size, "scale_bits": scale_bits}
    if levels == "ternary":
        return ternary.quantize(weight_OI, importance_I, **groups)
    if levels == "book":
        if book_K is None:
            book_K = books.learned_book(weight_OI, importance_I, bits=bits, **groups)
        return books.search(weight_OI, importance_I, book_K, bits=bits, **groups)
    return scales.search(weight_OI, importance_I, bits=bits, symmetric=symmetric, **groups)
