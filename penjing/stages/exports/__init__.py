"""Exports: the same model for other programs, one format a file. The folder is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from penjing.checkpoint import Checkpoint
from penjing.errors import PenjingError
from penjing.format.families import Part, family
from penjing.format.pack import Layout, dequantize, level_values, unpack_codes
from penjing.format.source import row_indices
from penjing.stages import Progress


@dataclass
class Exported:
    """`types`: how many matrices are stored in which way. `notes`: what could not be kept as it was."""

    out: Path
    bytes: int
    types: dict[str, int]
    notes: list[str] = field(default_factory=list)


class Format(Protocol):
    def export(self, weights: Weights, out: Path, *, force: bool, progress: Progress | None) -> Exported: ...


def formats() -> list[str]:
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def export(
    checkpoint: Checkpoint, out: Path, *, to: str, force: bool = False, progress: Progress | None = None
) -> Exported:
    """Write a checkpoint, quantized or not, in another program's format. Raises PenjingError."""
    if to not in formats():
        raise PenjingError(f"no format {to!r}", where="--to", attempt=", ".join(formats()))
    module = cast(Format, importlib.import_module(f"{__name__}.{to.replace('-', '_')}"))
    return module.export(Weights(checkpoint), Path(out), force=force, progress=progress)


class Codes(NamedTuple):
    """weight = step * scale; `zero_ON`: what was taken from codes to get steps, where they have zero points."""

    step_OI: NDArray[np.int16]  # noqa: N815
    scale_ON: NDArray[np.float16]  # noqa: N815
    zero_ON: NDArray[np.uint8]  # noqa: N815


class Weights:
    """A checkpoint's weights under Hugging Face's names, whatever they are stored as.

    `parts`: Hugging Face names to the canonical weights that make them up. `config`: Hugging Face's.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.config = _config(checkpoint)
        present = {part.name: part for part in checkpoint.parts()}
        self._present = present
        self.parts: dict[str, list[Part]] = defaultdict(list)
        for part in family(self.config["model_type"]).parts(checkpoint.architecture):
            if part.name in present:
                self.parts[part.source].append(part)

    def shape(self, source: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        own = [(part, self._shape(part.name)) for part in self.parts[source]]
        rows = sum(shape[0] for _, shape in own)
        return (rows, *own[0][1][1:])

    def read(self, source: str, *, add: bool = True) -> NDArray[np.float32]:
        """The tensor with the values that the engine computes with. `add` False: without undoing `Part.add`."""
        shape = self.shape(source)
        out = np.empty(shape, np.float32)
        for part in self.parts[source]:
            value = self._canonical(part.name)
            out[row_indices(part.rows, shape[0])] = value - np.float32(part.add) if part.add and add else value
        return out

    def layouts(self, source: str) -> list[Layout]:
        """How its parts are stored; empty unless all of them are codes."""
        found = [self.checkpoint.quantized.get(part.name) for part in self.parts[source]]
        coded = [layout for layout in found if layout is not None]
        return coded if len(coded) == len(found) else []

    def codes(self, source: str) -> Codes:
        """Of a tensor whose parts are all codes, in groups of one size."""
        found = []
        for part, layout in zip(self.parts[source], self.layouts(source), strict=True):
            packed = self.checkpoint.packed(part.name)
            code_OI, scale_ON, zero_ON = unpack_codes(layout, packed)
            if zero_ON is None:
                step_OI = level_values(layout.bits, layout.levels, packed.get("book"))[code_OI]
                zero_ON = np.zeros(scale_ON.shape, np.uint8)
            else:
                step_OI = code_OI.astype(np.int16) - zero_ON.astype(np.int16).repeat(layout.group_size, axis=1)
            found.append(Codes(step_OI, scale_ON, zero_ON))
        return Codes(*(self._gather(source, arrays) for arrays in zip(*found, strict=True)))

    def _gather(self, source: str, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Rows of canonical matrices in the order of the tensor that they make up."""
        rows = sum(map(len, arrays))
        out = np.empty((rows, *arrays[0].shape[1:]), arrays[0].dtype)
        for part, array in zip(self.parts[source], arrays, strict=True):
            out[row_indices(part.rows, rows)] = array
        return out

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = self.checkpoint.architecture.matrix_shapes()
        return shapes[name] if name in shapes else self._canonical(name).shape

    def _canonical(self, name: str) -> NDArray[np.float32]:
        layout = self.checkpoint.quantized.get(name)
        if layout is not None:
            return dequantize(layout, self.checkpoint.packed(name))
        return self.checkpoint.read_part(self._present[name])


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Hugging Face's config; a packed file carries it in its provenance."""
    if checkpoint.path.suffix != ".penjing":
        return checkpoint.config
    from penjing.format.container import open_container

    with open_container(checkpoint.path) as container:
        config = container.provenance.get("config")
    if not isinstance(config, dict) or "model_type" not in config:
        raise PenjingError(
            "this file does not carry the config of the model that it was made of",
            where=str(checkpoint.path),
            attempt="export the folder that it was packed from, or pack that again",
        )
    return config
