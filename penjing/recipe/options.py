"""What each way to store each matrix would cost: bytes, and the expected rise of the loss, from its weights.

Shapes: O outputs (a sample of them), I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from penjing.checkpoint import Checkpoint
from penjing.format.pack import Layout
from penjing.format.scales import LARGEST
from penjing.quant import layout_for, technique
from penjing.recipe.search import Option
from penjing.stages import Progress
from penjing.tensors.books import LARGEST as LARGEST_ENTRY
from penjing.tensors.books import first_book
from penjing.tensors.rounding import rounded
from penjing.tensors.statistics import Importance

#: how matrices are quantized in the end
METHOD = "gptq"
#: what spends the minutes that are given for tuning
TUNED_BY = "qat"
#: measured KL after METHOD as a fraction of what is expected of weights that are rounded each by itself, for matrices
#: whose inputs have a Hessian. SmolLM2-135M, even steps, calibrated on one text and measured on another: 0.46 for the
#: body alone in groups of 32, at 4 bits as at 3; about 0.6 in whole files of 76 and 60 MB, where bits are chosen by
#: these very estimates
GAIN = 0.6
BITS = (2, 3, 4, 5, 6, 8)
#: up to so many bits codes stand for the entries of a book: a quarter to a third less error than even steps, same bytes
MOST_BOOK_BITS = 4
#: up to so many bits scales have 8: half the bytes of float16, which in smaller groups take away more error than
#: rounding the scales adds (2% at 3 bits, less at 2). SmolLM2 in 60 MB: KL 0.27 to 0.22. At 4 bits too it came to 0.22,
#: with smaller groups, in which prompts are read more slowly
MOST_BITS_WITH_SMALL_SCALES = 3
#: group sizes looked for; a row that none of them divides takes its largest divisor up to the last of them
GROUP_SIZES = (32, 64, 128, 192)
TERNARY_GROUP_SIZES = (64, 192)
_SAMPLE = 1 << 16  # weights of a matrix that are tried


def options(
    parent: Checkpoint, importances: Mapping[str, Importance], *, progress: Progress | None = None
) -> dict[str, list[Option]]:
    """For every matrix its options: codes of some bits and group size, and float16 as it is."""
    parts = [part for part in parent.parts() if part.name in importances]
    found = {}
    for done, part in enumerate(parts, 1):
        importance = importances[part.name]
        num_rows, num_cols = parent.architecture.matrix_shapes()[part.name]
        rows = sample_rows(num_rows, num_cols)
        whole_OI = parent.read_part(part)
        weight_OI, largest = torch.from_numpy(np.ascontiguousarray(whole_OI[rows])), float(np.abs(whole_OI).max())
        found[part.name] = list(options_of(num_rows, weight_OI, importance, rows, largest))
        if progress is not None:
            progress("options", done, len(parts))
    return found


def group_sizes(num_cols: int, wanted: Sequence[int] = GROUP_SIZES) -> list[int]:
    """Group sizes worth trying for rows of this length."""
    dividing = [size for size in wanted if num_cols % size == 0]
    return dividing or [max(size for size in range(1, wanted[-1] + 1) if num_cols % size == 0)]


def sample_rows(num_rows: int, num_cols: int) -> slice:
    """The rows of a matrix that options are tried on."""
    return slice(0, num_rows, max(1, num_rows * num_cols // _SAMPLE))


def options_of(
    num_rows: int, weight_OI: torch.Tensor, importance: Importance, rows: slice, largest: float
) -> Iterator[Option]:
    """The options of one matrix; `weight_OI`: these rows of it, `largest`: of the magnitudes of all."""
    num_cols, importance_I = weight_OI.shape[1], importance.mean_input_I()
    gain = 1.0 if importance.hessian_II is None else GAIN
    scale_up = gain * importance.total() / max(importance.total(rows), 1e-30)
    for settings in _ways(num_cols, largest):
        # what METHOD begins with, but for the book, which it learns: that of normally distributed weights is near it
        book_K = first_book(settings["bits"]) if settings.get("levels") == "book" else None
        quantized = rounded(weight_OI, importance_I, **settings, book_K=book_K)
        loss = scale_up * importance.loss(quantized.dequantize() - weight_OI, rows)
        size_bytes = layout_for(technique(METHOD).Spec(**settings), num_rows, num_cols).nbytes
        yield Option(settings, size_bytes, loss)
    yield Option({"bits": 16}, Layout(kind="f16", rows=num_rows, cols=num_cols).nbytes, 0.0)


def _ways(num_cols: int, largest: float) -> Iterator[dict[str, Any]]:
    """Settings of METHOD. A ternary scale may be as large as a weight, that of a book is a 127th of it."""
    for bits in BITS:
        for group_size in group_sizes(num_cols):
            settings: dict[str, Any] = {"bits": bits, "group_size": group_size}
            settings |= {"levels": "book"} if bits <= MOST_BOOK_BITS else {}
            few = bits <= MOST_BITS_WITH_SMALL_SCALES and largest <= LARGEST * LARGEST_ENTRY
            yield settings | ({"scale_bits": 8} if few else {})
    for group_size in group_sizes(num_cols, TERNARY_GROUP_SIZES):
        small = {"scale_bits": 8} if largest <= LARGEST else {}
        yield {"bits": 2, "group_size": group_size, "levels": "ternary"} | small
