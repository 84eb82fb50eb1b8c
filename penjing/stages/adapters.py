"""Adapters into a model, out of it again, and several as one.

Shapes: R rank, O outputs, I inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penjing.checkpoint import Checkpoint
from penjing.errors import PenjingError
from penjing.evidence import Evidence, append, recording
from penjing.format.adapter import Adapter, Addition, read_adapter, write_adapter
from penjing.measure.torch_model import load
from penjing.stages import EVIDENCE
from penjing.stages.child import write_child

_PEFT_CONFIG = "adapter_config.json"


def merge(
    parent: Checkpoint,
    adapters: Sequence[Path],
    out: Path,
    *,
    weights: Sequence[float] | None = None,
    force: bool = False,
) -> Evidence:
    """Write the parent with adapters added to its weights, each times its weight: -1 takes one out that was merged.

    What was merged in 16 bits comes out again up to their rounding. Raises PenjingError.
    """
    weighted = _weighted(adapters, weights)
    settings = {"adapters": [str(path) for path, _ in weighted], "weights": [weight for _, weight in weighted]}
    with recording("merge", settings, parent=parent.digest) as work:
        model = load(parent)
        for path, weight in weighted:
            model = _merged(parent, model, path, weight)
        step = {"stage": "merge", "parent": parent.digest, "settings": settings}
        write_child(parent, model, out, step=step, work=work, force=force)
    append(out / EVIDENCE, work.finished())
    return work.finished()


def stack(
    model: Checkpoint, adapters: Sequence[Path], out: Path, *, weights: Sequence[float] | None = None, half: bool = True
) -> Adapter:
    """Write one small file for the engine that adds what all of them add, each times its weight. Ranks add up."""
    parts: dict[str, list[tuple[Any, Any]]] = {}
    parents = set()
    for path, weight in _weighted(adapters, weights):
        found = read_adapter(path, model.architecture)
        parents.add(found.parent)
        for name, addition in found.additions.items():
            pair = (addition.a.astype(np.float32), np.float32(weight) * addition.b.astype(np.float32))
            parts.setdefault(name, []).append(pair)
    additions = {
        name: Addition(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs], axis=1))
        for name, pairs in parts.items()
    }
    known = parents.pop() if len(parents) == 1 else ""
    made = Adapter(additions, known or model.digest).rounded("f16" if half else "f32")
    write_adapter(out, made)
    return made


def _weighted(adapters: Sequence[Path], weights: Sequence[float] | None) -> list[tuple[Path, float]]:
    weights = [1.0] * len(adapters) if weights is None else weights
    if not adapters or len(weights) != len(adapters):
        raise PenjingError(
            f"{len(weights)} weights for {len(adapters)} adapters", where="--weights", attempt="one weight for each"
        )
    for path in adapters:
        if not Path(path).exists():
            raise PenjingError("no such adapter", where=str(path), attempt="a folder that `penjing adapt` wrote")
    return list(zip(map(Path, adapters), weights, strict=True))


def _merged(parent: Checkpoint, model: Any, path: Path, weight: float) -> Any:
    kind = _peft_kind(path)
    if kind in (None, "LORA") and not _peft_config(path).get("use_dora"):
        _add(parent, model, read_adapter(path, parent.architecture), weight)
        return model
    if weight != 1.0:
        raise PenjingError(f"an adapter of kind {kind} has no weight but 1", where=str(path), attempt="LoRA")
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(model, str(path))
    if wrapped.active_peft_config.is_prompt_learning:
        raise PenjingError("what stands before a text is no part of the weights", where=str(path), attempt="LoRA")
    return wrapped.merge_and_unload()


@torch.no_grad()
def _add(parent: Checkpoint, model: Any, adapter: Adapter, weight: float) -> None:
    parts = {part.name: part for part in parent.parts()}
    for name, addition in adapter.additions.items():
        part = parts[name]
        delta_OI = torch.from_numpy(addition.b.astype(np.float32) @ addition.a.astype(np.float32))
        target_OI = model.get_parameter(part.source)
        rows = slice(None) if part.rows is None else part.rows
        target_OI[rows] += weight * delta_OI


def _peft_kind(path: Path) -> str | None:
    return str(_peft_config(path).get("peft_type")) if path.is_dir() else None


def _peft_config(path: Path) -> Mapping[str, Any]:
    try:
        found: dict[str, Any] = json.loads((path / _PEFT_CONFIG).read_text()) if path.is_dir() else {}
    except (OSError, ValueError) as error:
        raise PenjingError(f"not an adapter: {error}", where=str(path), attempt="a folder that peft wrote") from error
    return found
