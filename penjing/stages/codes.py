"""What stages that write a quantized child have in common: its shards, codes beside floats, what stays as it is.

Shapes: O rows of a chunk, I inputs, N groups a row.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penjing.checkpoint import Checkpoint
from penjing.errors import PenjingError
from penjing.format.hf_writer import Shard, ShardWriter
from penjing.format.pack import LANES, Layout, pack_codes
from penjing.format.safetensors_file import TensorSpec
from penjing.stages.blocks import block_of
from penjing.tensors.groups import Quantized

_CHUNK = 1 << 22  # weights worked on at a time
_HEADS = ("lm_head.weight", "embed_out.weight")


def plan(parent: Checkpoint, stored: Mapping[str, Layout]) -> list[Shard]:
    """One shard a block: embedding, each layer, the rest."""
    num_layers = parent.architecture.num_layers
    depth = dict.fromkeys(parent.tensors, num_layers + 1)
    for part in parent.parts():
        depth[part.source] = min(depth[part.source], block_of(part.name, num_layers))
    if parent.architecture.tied:  # a copy of the embedding under the head's name would no longer be a copy
        depth = {name: n for name, n in depth.items() if not (name.endswith(_HEADS) and n == num_layers + 1)}
    tensors: list[dict[str, TensorSpec]] = [{} for _ in range(num_layers + 2)]
    for name, n in depth.items():
        info = parent.tensors[name]
        tensors[n][name] = TensorSpec(info.dtype, tuple(info.shape))
    layouts: list[dict[str, Layout]] = [{} for _ in range(num_layers + 2)]
    for part in parent.parts():
        if part.name in stored:
            layouts[depth[part.source]][part.name] = stored[part.name]
    return [Shard(*pair) for pair in zip(tensors, layouts, strict=True) if pair[0]]


def packed(quantized: Quantized, layout: Layout, name: str) -> dict[str, NDArray[Any]]:
    if not quantized.scale_ON.isfinite().all():
        raise PenjingError(
            "a weight is too large for a scale in float16", where=name, attempt="leave this matrix in float: bits=16"
        )
    made, told = (f"{one.bits} bits ({one.levels}), scales of {one.scale_bits}" for one in (quantized, layout))
    if made != told:
        raise ValueError(f"{name}: {made} where {told} were said")
    code_OI = quantized.code_ONG.flatten(1).numpy()
    zero_ON = None if quantized.zero_ON is None else quantized.zero_ON.numpy()
    book_K = None if quantized.book_K is None else quantized.book_K.numpy()
    chunk = dataclasses.replace(layout, rows=len(code_OI))
    return pack_codes(chunk, code_OI, quantized.scale_ON.numpy(), zero_ON, book_K)


def copy_rest(parent: Checkpoint, tensor: str, written: Sequence[NDArray[np.intp]], shard: ShardWriter) -> None:
    """Rows of a tensor that no quantized matrix has written, as they are."""
    shape = parent.tensors[tensor].shape
    if not shape:
        shard.write(tensor, parent.read(tensor))
        return
    left = np.ones(shape[0], bool)
    for index in written:
        left[index] = False
    step = max(1, _CHUNK // max(1, int(np.prod(shape[1:]))))
    rows = np.flatnonzero(left)
    for begin, end in runs(rows):
        for start in range(int(rows[begin]), int(rows[end - 1]) + 1, step):
            stop = min(start + step, int(rows[end - 1]) + 1)
            shard.write(tensor, parent.read(tensor, slice(start, stop)), start)


def row_chunks(layout: Layout) -> Iterator[slice]:
    """Whole panels of about _CHUNK weights."""
    step = max(1, _CHUNK // (LANES * layout.cols)) * LANES
    for start in range(0, layout.rows, step):
        yield slice(start, min(start + step, layout.rows))


def runs(index: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Spans (begin, end) of `index` in which it rises by one."""
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    edges = [0, *breaks.tolist(), len(index)]
    return ((begin, end) for begin, end in itertools.pairwise(edges) if end > begin)


def num_weights(parent: Checkpoint) -> int:
    return sum(int(np.prod(info.shape)) for info in parent.tensors.values())


def bits_per_weight(parent: Checkpoint, stored: Mapping[str, Layout]) -> float:
    """Of the weights as they will be packed: codes, scales and zero points, 16 bits for whatever stays in float."""
    coded = sum(layout.rows * layout.cols for layout in stored.values())
    floats = num_weights(parent) - coded
    return 8 * (sum(layout.nbytes for layout in stored.values()) + 2 * floats) / num_weights(parent)
