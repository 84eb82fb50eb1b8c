"""Prepare: a float child that computes what its parent does, and is easier to quantize.

Works through the parent block by block. Killed and run again, it continues after the last whole block and gives the
same bytes. The child is float32: what is multiplied here and divided there would not meet again in fewer bits.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.evidence import Evidence, recording
from penjing.format.families import Part, family
from penjing.format.hf_writer import CheckpointWriter, Shard
from penjing.format.safetensors_file import TensorSpec
from penjing.format.source import row_indices
from penjing.quant import Transformation, transformation
from penjing.stages import EVIDENCE, Progress, base, build_spec, inherit_evidence
from penjing.stages.blocks import block_of
from penjing.tensors.statistics import Importance


def prepare(
    parent: Checkpoint,
    out: Path,
    *,
    method: str,
    spec: Mapping[str, Any] | None = None,
    importances: Mapping[str, Importance] | None = None,
    calibration: Windows | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Evidence:
    """Write an equivalent child beside an untouched parent.

    `importances`: of `stages.calibrate`, for methods that go by what the loss minds, and `calibration`: the text they
    are of. Memory is that of the largest block in float64. Raises PenjingError.
    """
    if parent.path.suffix == ".penjing":
        raise PenjingError(
            "a packed model is not changed", where=str(parent.path), attempt="prepare what it was packed from"
        )
    module = transformation(method)
    built = build_spec(module.Spec, spec or {}, where=method)
    work = _Work(parent, module, built, importances)
    settings = {"method": method, "spec": dataclasses.asdict(built)}
    corpus = None if calibration is None else calibration.digest
    step = {"stage": "prepare", "parent": parent.digest, "settings": settings, "corpus": corpus}
    with CheckpointWriter(out, work.shards(), step=step, force=force) as writer:
        inherit_evidence(parent, writer.folder)
        with recording(
            "prepare", settings, path=writer.folder / EVIDENCE, parent=parent.digest, corpus=corpus
        ) as record:
            for index in writer.pending():
                if progress is not None:
                    progress(method, index, parent.architecture.num_layers + 2)
                with writer.shard(index) as shard:
                    for name, array in work.tensors(index).items():
                        shard.write(name, array)
            writer.write_texts(
                config=work.config,
                generation=parent.generation,
                tokenizer_json=parent.tokenizer_json,
                chat_template=parent.chat_template,
                companions=parent.path if parent.path.is_dir() else None,
                base=base(parent),
            )
            record.child = open_checkpoint(writer.folder).digest
        writer.finish()
    return record.finished()


class _Work:
    """Tensors of the child, block by block."""

    def __init__(
        self, parent: Checkpoint, module: Transformation, spec: Any, importances: Mapping[str, Importance] | None
    ) -> None:
        self._parent, self._module, self._spec = parent, module, spec
        self._given: dict[str, Any] = {}
        if "importances" in inspect.signature(module.change).parameters:
            if importances is None:
                raise PenjingError("it needs text to calibrate on", where="prepare", attempt="--data FILE")
            self._given = {"importances": importances}
        architecture = parent.architecture
        check = getattr(module, "check", None)
        if check is not None:
            check(spec, architecture)
        unties = getattr(module, "unties", lambda *_: False)(spec, architecture)
        self.config = {name: value for name, value in parent.config.items() if name != "torch_dtype"}
        self.config |= {"dtype": "float32"} | ({"tie_word_embeddings": False} if unties else {})
        self._parts = list(parent.parts())
        if unties:
            child = dataclasses.replace(architecture, tied=False)
            parts = family(parent.config.get("model_type")).parts(child)
            self._parts.append(next(part for part in parts if part.name == "head"))
        self._embed = next(part for part in self._parts if part.name == "embed")

    def shards(self) -> list[Shard]:
        """One a block: the embedding, each layer, the rest."""
        shards = []
        for block in range(self._parent.architecture.num_layers + 2):
            shapes = {part.source: self._shape(part) for part in self._of(block)}
            shards.append(Shard({name: TensorSpec("F32", shape) for name, shape in shapes.items()}))
        return shards

    def tensors(self, block: int) -> dict[str, NDArray[np.float32]]:
        """Every tensor of a block, changed where it must be."""
        parts = self._of(block)
        weights = {part.name: torch.from_numpy(self._read(part)) for part in parts}
        for name, weight in weights.items():
            if not weight.isfinite().all():
                raise PenjingError("a weight is NaN or infinite", where=name, attempt="repair the model")
        weights |= self._module.change(self._spec, self._parent.architecture, block, weights, **self._given)
        found = {part.source: np.empty(self._shape(part), np.float32) for part in parts}
        for part in parts:
            rows = row_indices(part.rows, len(found[part.source]))
            found[part.source][rows] = weights[part.name].numpy() - np.float32(part.add)
        return found

    def _of(self, block: int) -> list[Part]:
        layers = self._parent.architecture.num_layers
        return [part for part in self._parts if block_of(part.name, layers) == block]

    def _read(self, part: Part) -> NDArray[np.float32]:
        known = part.source in self._parent.tensors
        return self._parent.read_part(part if known else self._embed)

    def _shape(self, part: Part) -> tuple[int, ...]:
        known = self._parent.tensors.get(part.source, self._parent.tensors[self._embed.source])
        return tuple(known.shape)
