"""Quantize: a child whose matrices are codes, with the floats that the codes stand for beside them.

Works through the parent in chunks of rows, so memory does not grow with the model. Killed and run again, it continues
after the last whole shard and gives the same bytes.

Shapes: O rows of a chunk, I inputs, N groups a row.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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
from penjing.format.pack import LANES
from penjing.format.source import row_indices
from penjing.quant import apply, layout_for, technique
from penjing.stages import EVIDENCE, Progress, base, build_spec, inherit_evidence
from penjing.stages.codes import bits_per_weight, copy_rest, num_weights, packed, plan, row_chunks, runs
from penjing.stages.foresight import UNLIMITED, Budget, Forecast, foretold, memory, remedies
from penjing.stages.rehearsal import Rehearsal
from penjing.stages.weighing import Choice, Weighing
from penjing.tensors.statistics import Importance, dead_inputs

_FLOAT_BITS = 16  # `bits` that mean: leave this matrix in float


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
    budget: Budget = UNLIMITED,
    tell: Callable[[str], None] | None = None,
) -> Evidence:
    """Write a quantized child beside an untouched parent.

    `spec`: settings of the method. `overrides`: pairs of a pattern for canonical names ("embed", "layers.*.down") and
    settings that differ there, later ones winning; `bits` 16 or `method` "none" leaves a matrix in float.
    `importances`: of `stages.calibrate`, for methods that weigh errors, and `calibration`: the text they are of.
    Methods that ask for Hessians which these do not hold get X^T X of the text, block by block, and take the memory of
    one block, of its Hessians, and of all windows' hidden states. Others: what importing torch takes and about 150 MB.
    With a `budget`, or `tell`, which hears it, time and memory are predicted first; what cannot be met is not begun.
    Raises PenjingError.
    """
    if parent.path.is_file() and parent.path.suffix == ".penjing":
        raise PenjingError(
            "a packed model is not quantized again", where=str(parent.path), attempt="quantize what it was packed from"
        )
    chosen = choices(parent, method, spec or {}, overrides)
    settings: dict[str, Any] = {"method": method, "spec": dict(spec or {}), "seed": seed}
    settings |= {"overrides": [[pattern, dict(changes)] for pattern, changes in overrides]}
    # a run that was begun under the Fisher's Hessians is not continued under those of blocks
    settings |= {"by_block": True} if calibration is not None and not importances else {}
    corpus = None if calibration is None else calibration.digest
    step = {"stage": "quantize", "parent": parent.digest, "settings": settings, "corpus": corpus}
    stored = {name: choice.layout for name, choice in chosen.items()}
    shards = plan(parent, stored)
    with CheckpointWriter(out, shards, step=step, force=force) as writer:
        predicted = None
        if budget or tell is not None:
            left = Rehearsal(parent, chosen, shards, writer.pending(), importances or {}, calibration, writer.folder)
            predicted = _foreseen(left, writer, budget, tell, f"{method}, {parent.name}")
        inherit_evidence(parent, writer.folder)
        with recording(
            "quantize", settings, path=writer.folder / EVIDENCE, parent=parent.digest, corpus=corpus
        ) as work:
            work.predicted = {} if predicted is None else dataclasses.asdict(predicted)
            read_child = partial(_read_child, parent, writer)
            weighing = Weighing(parent, chosen, importances or {}, calibration, read_child, seed)
            _write_shards(parent, chosen, shards, writer, weighing, seed, progress)
            _write_texts(parent, writer)
            work.before = {"bits_per_weight": 8 * parent.file_bytes / num_weights(parent)}
            work.after = {"bits_per_weight": bits_per_weight(parent, stored)}
            dead = dead_inputs({name: importance for name, importance in (importances or {}).items() if name in chosen})
            work.after |= {"dead_inputs": dead} if dead else {}
            work.child = open_checkpoint(writer.folder).digest
        writer.finish()
    return work.finished()


def _foreseen(
    rehearsal: Rehearsal, writer: CheckpointWriter, budget: Budget, tell: Callable[[str], None] | None, where: str
) -> Forecast:
    """What is left will take this. PenjingError where that is too much: memory is counted before any is taken."""
    work = rehearsal.parent, rehearsal.chosen, rehearsal.importances, rehearsal.calibration
    needed, attempt = memory(*work), remedies(rehearsal.chosen, rehearsal.calibration)
    try:
        budget.check_memory(needed, where=where, attempt=attempt)
        seconds = rehearsal.seconds()
        budget.check_time(seconds, where=where, attempt=attempt)
    except PenjingError:
        writer.abandon()
        raise
    forecast = Forecast(seconds, sum(needed.values()))
    if tell is not None:
        tell(f"quantizing will take {foretold(forecast)}")
    return forecast


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
                copy_rest(parent, name, quantized_rows, shard)
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
        weighed: dict[str, Any] | None = None
        for rows in row_chunks(choice.layout):
            weight_OI = torch.from_numpy(_read_finite(parent, part, rows))
            quantized = weighing.learned(part.name, rows)
            if quantized is None:
                weighed = weighing.of(part.name, choice) if weighed is None else weighed
                quantized = apply(choice.method, choice.spec, weight_OI, **weighed, book_K=book_K)
            del weight_OI  # and below: memory is that of one chunk
            if rows.start and not _same_book(quantized.book_K, book_K):
                raise ValueError(f"{part.name}: {choice.method} chose another book for later rows")
            book_K = quantized.book_K
            shard.write_codes(part.name, packed(quantized, choice.layout, part.name), rows.start // LANES)
            shipped_OI = quantized.dequantize().numpy()
            for begin, end in runs(index[rows]):
                shard.write(part.source, shipped_OI[begin:end], int(index[rows.start + begin]))
            del quantized, shipped_OI
    return index


def _read_finite(parent: Checkpoint, part: Part, rows: slice) -> NDArray[np.float32]:
    weight_OI = parent.read_part(part, rows)
    if not np.isfinite(weight_OI).all():
        raise PenjingError(
            "a weight is NaN or infinite", where=part.name, attempt="repair the model, or train it again"
        )
    return weight_OI


def _write_texts(parent: Checkpoint, writer: CheckpointWriter) -> None:
    writer.write_texts(
        config=parent.config,
        generation=parent.generation,
        tokenizer_json=parent.tokenizer_json,
        chat_template=parent.chat_template,
        companions=parent.path if parent.path.is_dir() else None,
        base=base(parent),
    )


def _read_child(
    parent: Checkpoint, writer: CheckpointWriter, part: Part, rows: slice | None = None
) -> NDArray[np.float32]:
    return gather_part(part, writer.read, parent.tensors[part.source].shape[0], rows)


def _same_book(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
