"""Calibrate: how much the loss on a text minds errors in each matrix, kept in a file that a re-run reads back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penjing.checkpoint import Checkpoint
from penjing.data.text import Windows
from penjing.format.families import Part
from penjing.format.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec
from penjing.measure import torch_model
from penjing.stages import Progress
from penjing.stages.foresight import Budget, Forecast, calibration_memory, foretold, hessian_bytes
from penjing.stages.rehearsal import calibration_seconds
from penjing.tensors.precision import fast_products
from penjing.tensors.statistics import Importance, importances, weight_names

_KEY = "calibration"
_FORMAT = 2  # of the cache; 2: the embedding has a Hessian too
_MOST_HESSIANS = 1 << 30  # bytes; what a larger model's would take is better spent elsewhere


def calibrate(
    parent: Checkpoint, calibration: Windows, *, cache: Path, seed: int = 0, progress: Progress | None = None
) -> dict[str, Importance]:
    """The importance of every matrix, by canonical name. `cache` is read if it is of the same model, text and seed.

    Needs the model in float32 and the activations of one window in memory. `hessian_II` is there as well where all of
    them take at most a gigabyte. Raises PenjingError.
    """
    digest = _digest(parent, calibration, seed)
    known = _read(cache, digest)
    if known is not None:
        return known
    tokens_WT = torch.from_numpy(calibration.tokens_WT.astype(np.int64))
    model = torch_model.load(parent)
    with fast_products():
        by_weight = importances(model, tokens_WT, hessians=with_hessians(parent), seed=seed, progress=progress)
    found = {}
    for part in parent.parts():
        if part.name in parent.architecture.matrix_shapes():
            whole = by_weight[_weight_name(model, part, by_weight)]
            rows = slice(None) if part.rows is None else part.rows
            found[part.name] = dataclasses.replace(whole, output_KO=whole.output_KO[:, rows])
    _write(cache, digest, found)
    return found


def foresee(parent: Checkpoint, calibration: Windows, budget: Budget, tell: Callable[[str], None] | None) -> None:
    """Say what `calibrate` will take; raise PenjingError where a budget does not allow it."""
    where = f"what the loss of {parent.name} minds"
    attempt = "--by-block, which holds one layer, or --method rtn"
    needed = calibration_memory(parent, calibration, hessians=with_hessians(parent))
    budget.check_memory(needed, where=where, attempt=attempt)
    with fast_products():
        seconds = calibration_seconds(parent, calibration, hessians=with_hessians(parent))
    budget.check_time(seconds, where=where, attempt=attempt)
    if tell is not None:
        tell(f"calibrating will take {foretold(Forecast(seconds, sum(needed.values())))}")


def with_hessians(parent: Checkpoint) -> bool:
    """Whether `calibrate` finds Hessians of this model."""
    return hessian_bytes(parent.architecture) <= _MOST_HESSIANS


def _weight_name(model: Any, part: Part, known: Iterable[str]) -> str:
    """The model's own name of a tensor: transformers renames heads, and what stands before the layers."""
    if part.name in ("embed", "head"):
        module = model.get_input_embeddings() if part.name == "embed" else model.get_output_embeddings()
        return weight_names(model)[module]
    within = part.source[part.source.index("layers.") :]
    return next(name for name in known if name.endswith(within))


def _digest(parent: Checkpoint, calibration: Windows, seed: int) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, parent.digest, calibration.digest, seed]).encode()).hexdigest()


def _write(path: Path, digest: str, found: Mapping[str, Importance]) -> None:
    arrays = {f"{name}.output": importance.output_KO.numpy() for name, importance in found.items()}
    arrays |= {f"{name}.input": importance.input_KI.numpy() for name, importance in found.items()}
    arrays |= {
        f"{name}.hessian": importance.hessian_II.numpy()
        for name, importance in found.items()
        if importance.hessian_II is not None
    }
    specs = {name: TensorSpec("F32", array.shape) for name, array in arrays.items()}
    with SafetensorsWriter(path, specs, {_KEY: digest}) as writer:
        for name, array in arrays.items():
            writer.write(name, np.ascontiguousarray(array))
        writer.finish()


def _read(path: Path, digest: str) -> dict[str, Importance] | None:
    if not path.is_file():
        return None
    with SafetensorsFile(path) as file:
        if file.metadata.get(_KEY) != digest:
            return None
        names = [name.removesuffix(".input") for name in file.tensors if name.endswith(".input")]
        fields = {"output_KO": "output", "input_KI": "input", "hessian_II": "hessian"}
        return {
            name: Importance(
                **{
                    field: torch.from_numpy(file.read(f"{name}.{suffix}"))
                    for field, suffix in fields.items()
                    if f"{name}.{suffix}" in file.tensors
                }
            )
            for name in names
        }
