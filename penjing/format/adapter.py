"""Adapters: low-rank additions to a model's matrices (LoRA, arXiv:2106.09685) in a small file of their own.

A safetensors file: `layers.N.PART.lora_a` [R, I] and `layers.N.PART.lora_b` [O, R], both F32 or F16, for some matrices
(canonical names, see architecture.py): y += B (A x), whatever scales the addition being multiplied into B. Its
`__metadata__`: `format`, `version`, and `parent`, the digest of the checkpoint it was trained on ("": not known).
A folder that peft wrote is read as it is (`peft_adapter.py`).
Shapes: R rank, I inputs, O outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.format.architecture import Architecture
from penjing.format.pack import round_floats
from penjing.format.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec

FORMAT: Final = "penjing-adapter"
VERSION: Final = "1"
#: what the engine has room for, PJ_MAX_RANK
MAX_RANK: Final = 256
_DTYPES: Final = ("F32", "F16")
_OTHER: Final = "the adapter of this very model"


@dataclass(frozen=True)
class Addition:
    """y += B (A x) to one matrix; float32 or float16, both the same."""

    a: NDArray[Any]  # [R, I]
    b: NDArray[Any]  # [O, R]


@dataclass(frozen=True)
class Adapter:
    """`additions`: canonical names of matrices to what is added. `parent`: digest of what it was trained on, or ""."""

    additions: Mapping[str, Addition]
    parent: str = ""

    @cached_property
    def digest(self) -> str:
        """sha256 over all that answers depend on."""
        digest = hashlib.sha256()
        for name, addition in sorted(self.additions.items()):
            for array in (addition.a, addition.b):
                digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        return sum(addition.a.nbytes + addition.b.nbytes for addition in self.additions.values())

    def rounded(self, kind: Literal["f32", "f16"]) -> Adapter:
        """The same in numbers of another width. Raises PenjingError where one would not be finite any more."""
        rounded = {
            name: Addition(
                round_floats(addition.a.astype(np.float32), kind, where=name),
                round_floats(addition.b.astype(np.float32), kind, where=name),
            )
            for name, addition in self.additions.items()
        }
        return replace(self, additions=rounded)


def write_adapter(path: str | Path, adapter: Adapter) -> None:
    """Write the file atomically; the same adapter gives the same bytes."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, addition in sorted(adapter.additions.items()):
        arrays |= {f"{name}.lora_a": addition.a, f"{name}.lora_b": addition.b}
    kinds = {np.dtype("<f4"): "F32", np.dtype("<f2"): "F16"}
    specs = {name: TensorSpec(kinds[array.dtype], array.shape) for name, array in arrays.items()}
    metadata = {"format": FORMAT, "version": VERSION, "parent": adapter.parent}
    with SafetensorsWriter(path, specs, metadata) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
        writer.finish()


def read_adapter(path: str | Path, architecture: Architecture) -> Adapter:
    """An adapter file, or a folder that peft wrote, as arrays in memory that fit a model of this architecture.

    Raises PenjingError on anything else: unknown or half additions, shapes that do not fit, values that are not finite.
    """
    if Path(path).is_dir():
        from penjing.format.peft_adapter import read_peft

        adapter = read_peft(Path(path), architecture)
    else:
        adapter = _read_file(path)
    check_adapter(adapter, architecture, where=str(path))
    return adapter


def check_adapter(adapter: Adapter, architecture: Architecture, *, where: str) -> None:
    """Raise PenjingError unless every addition fits its matrix and every number is finite."""
    shapes = {name: shape for name, shape in architecture.matrix_shapes().items() if name.startswith("layers.")}
    if not adapter.additions:
        raise PenjingError("the adapter is empty", where=where, attempt=_OTHER)
    for name, addition in adapter.additions.items():
        place = f"{name} in {where}"
        if name not in shapes:
            raise PenjingError("the model has no such matrix for an adapter", where=place, attempt=_OTHER)
        outputs, inputs = shapes[name]
        a_shape, b_shape = addition.a.shape, addition.b.shape
        if len(a_shape) != 2 or b_shape != (outputs, a_shape[0]) or a_shape[1] != inputs:
            fact = f"A {a_shape} and B {b_shape} do not fit a matrix of {outputs} by {inputs}"
            raise PenjingError(fact, where=place, attempt=_OTHER)
        if not 1 <= a_shape[0] <= MAX_RANK:
            raise PenjingError(f"rank {a_shape[0]}", where=place, attempt=f"a rank from 1 to {MAX_RANK}")
        if addition.a.dtype != addition.b.dtype or addition.a.dtype not in (np.float32, np.float16):
            fact = f"A of {addition.a.dtype} and B of {addition.b.dtype}"
            raise PenjingError(fact, where=place, attempt="both float32 or both float16")
        if not (np.isfinite(addition.a).all() and np.isfinite(addition.b).all()):
            raise PenjingError("a value is NaN or infinite", where=place, attempt="train the adapter again")


def _read_file(path: str | Path) -> Adapter:
    where = str(path)
    with SafetensorsFile(path) as file:
        metadata = file.metadata
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            attempt = "a folder that peft wrote, or a file of penjing.format.adapter.write_adapter"
            raise PenjingError("not an adapter of this version", where=where, attempt=attempt)
        names = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in file.tensors}
        expected = {f"{name}{suffix}" for name in names for suffix in (".lora_a", ".lora_b")}
        if odd := expected ^ file.tensors.keys():
            raise PenjingError(f"{min(odd)} is missing or too many", where=where, attempt="write the adapter again")
        for name, spec in file.tensors.items():
            if spec.dtype not in _DTYPES:
                raise PenjingError(f"{name} is {spec.dtype}", where=where, attempt=" or ".join(_DTYPES))
        additions = {  # copies: a small file, and what changes it later changes nothing here
            name: Addition(file.raw(f"{name}.lora_a").copy(), file.raw(f"{name}.lora_b").copy())
            for name in sorted(names)
        }
    return Adapter(additions, metadata.get("parent", ""))
