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
from penjing.quant import apply, layout_for, technique
from penjing.recipe.search import Option
from penjing.stages import Progress
from penjing.tensors.statistics import Importance

#: how matrices are quantized in the end, and the quicker one by which options are priced
METHOD, PRICED_BY = "gptq", "scale_search"
#: what spends the minutes that are given for tuning
TUNED_BY = "qat"
#: measured KL after METHOD as a fraction of what is expected of PRICED_BY, for matrices whose inputs have a Hessian.
#: SmolLM2-135M, calibrated on one text and measured on another: 0.46 for the body alone in groups of 32, at 4 bits as
#: at 3; about 0.6 in whole files of 76 and 60 MB, where bits are chosen by these very estimates
GAIN = 0.6
BITS = (2, 3, 4, 5, 6, 8)
#: group sizes looked for; a row that none of them divides takes its largest divisor up to the last of them
GROUP_SIZES = (32, 64, 128)
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
        weight_OI = torch.from_numpy(np.ascontiguousarray(parent.read_part(part)[rows]))
        found[part.name] = list(options_of(num_rows, weight_OI, importance, rows))
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


def options_of(num_rows: int, weight_OI: torch.Tensor, importance: Importance, rows: slice) -> Iterator[Option]:
    """The options of one matrix; `weight_OI`: these rows of it."""
    num_cols = weight_OI.shape[1]
    scale_up = importance.total() / max(importance.total(rows), 1e-30)
    for method_name, gain, settings in _ways(num_cols, importance.hessian_II is not None):
        method = technique(method_name)
        spec = method.Spec(**{name: value for name, value in settings.items() if name != "method"})
        quantized = apply(method, spec, weight_OI, importance.mean_input_I())
        loss = gain * scale_up * importance.loss(quantized.dequantize() - weight_OI, rows)
        yield Option(settings, layout_for(spec, num_rows, num_cols).nbytes, loss)
    yield Option({"bits": 16}, Layout(kind="f16", rows=num_rows, cols=num_cols).nbytes, 0.0)


def _ways(num_cols: int, has_hessian: bool) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """What prices an option, by how much METHOD betters it, and its settings."""
    for bits in BITS:
        for group_size in group_sizes(num_cols):
            yield PRICED_BY, GAIN if has_hessian else 1.0, {"bits": bits, "group_size": group_size}
    for group_size in group_sizes(num_cols, TERNARY_GROUP_SIZES):
        yield "ternary", 1.0, {"method": "ternary", "group_size": group_size}
