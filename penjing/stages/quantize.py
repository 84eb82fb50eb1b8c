"""Quantize: a child whose matrices are codes, with the floats that the codes stand for beside them.

Works through the parent in chunks of rows, so memory does not grow with the model. Killed and run again, it continues
after the last whole shard and gives the same bytes.

Shapes: O rows of a chunk, I inputs, N groups a row.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penjing.checkpoint import Checkpoint, gather_part, open_checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.evidence import Evidence, recording
from penjing.format.families import Part
from penjing.format.hf_writer import CheckpointWriter, Shard, ShardWriter
from penjing.format.pack import LANES, Layout, pack_codes
from penjing.format.safetensors_file import TensorSpec
from penjing.format.source import row_indices
from penjing.quant import apply, layout_for, technique
from penjing.stages import EVIDENCE, Progress, base, build_spec, inherit_evidence
from penjing.stages.blocks import block_of
from penjing.stages.weighing import Choice, Weighing
from penjing.tensors.groups import Quantized
from penjing.tensors.statistics import Importance

_CHUNK = 1 << 22  # weights quantized at a time
_FLOAT_BITS = 16  # `bits` that mean: leave this matrix in float
_HEADS = ("lm_head.weight", "embed_out.weight")


def quantize(
    parent: Checkpoint,
    out: Path,
    *,
    method: str = "rtn",
    spec: Mapping[str, Any] | None = None,
    overrides: Sequence[tuple[str, Mapping[str, Any]]] = (),
    importances: Mapping[str, Importance] | None = None,
    calibration: Windows | None = None,
    force: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evidence:
    """Write a quantized child beside an untouched parent.

    `spec`: settings of the method. `overrides`: pairs of a pattern for canonical names ("embed", "layers.*.down") and
    settings that differ there, later ones winning; `bits` 16 or `method` "none" leaves a matrix in float.
    `importances`: of `stages.calibrate`, for methods that weigh errors, and `calibration`: the text they are of.
    Methods that ask for Hessians which these do not hold get X^T X of the text, block by block, and take the memory of
    one block, of its Hessians, and of all windows' hidden states. Others: what importing torch takes and about 150 MB.
    Raises PenjingError.
    """
    if parent.path.is_file() and parent.path.suffix == ".penjing":
        raise PenjingError(
            "a packed model is not quantized again", where=str(parent.path), attempt="quantize what it was packed from"
        )
    chosen = choices(parent, method, spec or {}, overrides)
    settings = {"method": method, "spec": dict(spec or {}), "seed": seed}
    settings |= {"overrides": [[pattern, dict(changes)] for pattern, changes in overrides]}
    corpus = None if calibration is None else calibration.digest
    step = {"stage": "quantize", "parent": parent.digest, "settings": settings, "corpus": corpus}
    shards = plan(parent, chosen)
    with CheckpointWriter(out, shards, step=step, force=force) as writer:
        inherit_evidence(parent, writer.folder)
        with recording(
            "quantize", settings, path=writer.folder / EVIDENCE, parent=parent.digest, corpus=corpus
        ) as work:
            read_child = partial(_read_child, parent, writer)
            weighing = Weighing(parent, chosen, importances or {}, calibration, read_child, seed)
            _write_shards(parent, chosen, shards, writer, weighing, seed, progress)
            writer.write_texts(
                config=parent.config,
                generation=parent.generation,
                tokenizer_json=parent.tokenizer_json,
                chat_template=parent.chat_template,
                companions=parent.path if parent.path.is_dir() else None,
                base=base(parent),
            )
            work.before = {"bits_per_weight": 8 * parent.file_bytes / _num_weights(parent)}
            work.after = {"bits_per_weight": _bits_per_weight(parent, chosen)}
            work.child = open_checkpoint(writer.folder).digest
        writer.finish()
    return work.finished()


def choices(
    parent: Checkpoint, method: str, spec: Mapping[str, Any], overrides: Sequence[tuple[str, Mapping[str, Any]]]
) -> dict[str, Choice]:
    """What is done to each matrix that is quantized. PenjingError for what cannot be done, before anything is."""
    shapes = parent.architecture.matrix_shapes()
    for pattern, _ in overrides:
        if not fnmatch.filter(shapes, pattern):
            examples = ", ".join([*list(shapes)[:3], "layers.*.down"])
            raise PenjingError(f"no matrix is called {pattern!r}", where=parent.name, attempt=f"for example {examples}")
    found = {}
    for name, (rows, cols) in shapes.items():
        settings: dict[str, Any] = {"method": method, **spec}
        for pattern, changes in overrides:
            if fnmatch.fnmatchcase(name, pattern):
                settings |= changes
        way = str(settings.pop("method"))
        if way == "none" or str(settings.get("bits")) == str(_FLOAT_BITS):
            continue
        module = technique(way)
        built = build_spec(module.Spec, settings, where=f"{way}, for {name}")
        stored = layout_for(built, rows, cols)
        stored.check(where=name)
        found[name] = Choice(module, built, stored)
    return found


def plan(parent: Checkpoint, chosen: Mapping[str, Choice]) -> list[Shard]:
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
        if part.name in chosen:
            layouts[depth[part.source]][part.name] = chosen[part.name].layout
    return [Shard(*pair) for pair in zip(tensors, layouts, strict=True) if pair[0]]


def _write_shards(
    parent: Checkpoint,
    chosen: Mapping[str, Choice],
    shards: Sequence[Shard],
    writer: CheckpointWriter,
    weighing: Weighing,
    seed: int,
    progress: Progress | None,
) -> None:
    parts: dict[str, list[Part]] = defaultdict(list)
    for part in parent.parts():
        if part.name in chosen:
            parts[part.source].append(part)
    total = sum(len(shard.tensors) for shard in shards)
    done = total - sum(len(shards[index].tensors) for index in writer.pending())
    for index in writer.pending():
        weighing.enter(index)
        with writer.shard(index) as shard:
            for name in shards[index].tensors:
                if progress is not None:
                    progress(name, done, total)
                quantized_rows = [
                    _quantize_part(parent, part, chosen[part.name], weighing, shard, seed)
                    for part in parts.get(name, [])
                ]
                _copy_rest(parent, name, quantized_rows, shard)
                done += 1
    if progress is not None:
        progress("quantized", done, total)


def _quantize_part(
    parent: Checkpoint,
    part: Part,
    choice: Choice,
    weighing: Weighing,
    shard: ShardWriter,
    seed: int,
) -> NDArray[np.intp]:
    """Write codes of a matrix, and the floats that they stand for into their rows of the source tensor: these rows."""
    index = row_indices(part.rows, parent.tensors[part.source].shape[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for each matrix, so that a run that continues makes the same choices
        book_K: torch.Tensor | None = None
        for rows in _row_chunks(choice.layout):
            weight_OI = parent.read_part(part, rows)
            if not np.isfinite(weight_OI).all():
                raise PenjingError(
                    "a weight is NaN or infinite", where=part.name, attempt="repair the model, or train it again"
                )
            quantized = weighing.learned(part.name, rows)
            if quantized is None:
                weighed = weighing.of(part.name)
                quantized = apply(choice.method, choice.spec, torch.from_numpy(weight_OI), **weighed, book_K=book_K)
            if rows.start and not _same_book(quantized.book_K, book_K):
                raise ValueError(f"{part.name}: {choice.method} chose another book for later rows")
            book_K = quantized.book_K
            shard.write_codes(part.name, _packed(quantized, choice.layout, part.name), rows.start // LANES)
            shipped_OI = quantized.dequantize().numpy()
            for begin, end in _runs(index[rows]):
                shard.write(part.source, shipped_OI[begin:end], int(index[rows.start + begin]))
    return index


def _read_child(parent: Checkpoint, writer: CheckpointWriter, part: Part) -> NDArray[np.float32]:
    return gather_part(part, writer.read, parent.tensors[part.source].shape[0])


def _packed(quantized: Quantized, layout: Layout, name: str) -> dict[str, NDArray[Any]]:
    if not quantized.scale_ON.isfinite().all():
        raise PenjingError(
            "a weight is too large for a scale in float16", where=name, attempt="leave this matrix in float: bits=16"
        )
    if (quantized.bits, quantized.levels) != (layout.bits, layout.levels):
        raise ValueError(f"{name}: {quantized.bits} bits ({quantized.levels}) where {layout} was said")
    code_OI = quantized.code_ONG.flatten(1).numpy()
    zero_ON = None if quantized.zero_ON is None else quantized.zero_ON.numpy()
    book_K = None if quantized.book_K is None else quantized.book_K.numpy()
    chunk = dataclasses.replace(layout, rows=len(code_OI))
    return pack_codes(chunk, code_OI, quantized.scale_ON.numpy(), zero_ON, book_K)


def _same_book(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _copy_rest(parent: Checkpoint, tensor: str, written: Sequence[NDArray[np.intp]], shard: ShardWriter) -> None:
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
    for begin, end in _runs(rows):
        for start in range(int(rows[begin]), int(rows[end - 1]) + 1, step):
            stop = min(start + step, int(rows[end - 1]) + 1)
            shard.write(tensor, parent.read(tensor, slice(start, stop)), start)


def _row_chunks(layout: Layout) -> Iterator[slice]:
    """Whole panels of about _CHUNK weights."""
    step = max(1, _CHUNK // (LANES * layout.cols)) * LANES
    for start in range(0, layout.rows, step):
        yield slice(start, min(start + step, layout.rows))


def _runs(index: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Spans (begin, end) of `index` in which it rises by one."""
    breaks = np.flatnonzero(np.diff(index) != 1) + 1
    edges = [0, *breaks.tolist(), len(index)]
    return ((begin, end) for begin, end in itertools.pairwise(edges) if end > begin)


def _num_weights(parent: Checkpoint) -> int:
    return sum(int(np.prod(info.shape)) for info in parent.tensors.values())


def _bits_per_weight(parent: Checkpoint, chosen: Mapping[str, Choice]) -> float:
    """Of the weights as they will be packed: codes, scales and zero points, 16 bits for whatever stays in float."""
    coded = sum(choice.layout.rows * choice.layout.cols for choice in chosen.values())
    floats = _num_weights(parent) - coded
    return 8 * (sum(choice.layout.nbytes for choice in chosen.values()) + 2 * floats) / _num_weights(parent)
