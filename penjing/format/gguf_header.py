"""The header of a GGUF file, read with every length checked before it is believed.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package's own reader trusts lengths
(one hostile array keeps it busy for ever) and makes several objects for each token; it serves here for what quantized
types are and mean.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from penjing.errors import PenjingError
from penjing.files import os_error

MAGIC: Final = b"GGUF"
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS: Final = 4
_DAMAGED: Final = "the file is damaged or cut off: copy or download it again"


@dataclass(frozen=True)
class GgufTensor:
    """`shape` has the slowest axis first (GGUF writes it last); `kind` is ggml's type; `offset` is within the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    row_bytes: int

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return self.num_rows * self.row_bytes


@dataclass(frozen=True)
class GgufHeader:
    """`fields`: metadata as Python values, arrays as lists. `tensors`: by GGUF's names, in file order."""

    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]
    file_bytes: int


def read_header(path: Path, block_sizes: dict[int, tuple[int, int]]) -> GgufHeader:
    """Read and check the header. `block_sizes`: ggml type to (elements, bytes) of a block.

    Raises PenjingError for anything that is not a whole GGUF file of version 2 or 3 in little-endian order.
    """
    try:
        with path.open("rb", buffering=1 << 20) as stream:
            cursor = _Cursor(path, stream, os.fstat(stream.fileno()).st_size)
            return _read(cursor, block_sizes)
    except OSError as error:
        raise os_error(error, path) from error


class _Cursor:
    """A place in a file, that never reads past its end."""

    def __init__(self, path: Path, stream: IO[bytes], size: int) -> None:
        self.path = path
        self.size = size
        self.position = 0
        self._stream = stream

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise self.damaged(f"it ends at byte {self.size}, where more is promised")
        data = self._stream.read(count)
        if len(data) != count:
            raise self.damaged("it became shorter while it was read")
        self.position += count
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise self.damaged("text that is not UTF-8") from error

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth > 2:
            raise self.damaged(f"a value of unknown type {kind}")
        item_kind, count = self.number("I"), self.number("Q")
        if item_kind in _SCALARS:
            item = np.dtype(f"<{_SCALARS[item_kind]}")
            return np.frombuffer(self.take(count * item.itemsize), item).tolist()
        return [self.value(item_kind, depth + 1) for _ in range(count)]

    def damaged(self, problem: str) -> PenjingError:
        return PenjingError(f"not a sound GGUF file: {problem}", where=str(self.path), attempt=_DAMAGED)


def _read(cursor: _Cursor, block_sizes: dict[int, tuple[int, int]]) -> GgufHeader:
    if cursor.size < 24 or cursor.take(4) != MAGIC:
        raise cursor.damaged("it does not begin as one")
    version = cursor.number("I")
    if version not in (2, 3):
        what = "big-endian files" if version & 0xFFFF == 0 else f"version {version}"
        raise PenjingError(
            f"{what} of GGUF are not supported", where=str(cursor.path), attempt="convert the model again"
        )
    num_tensors, num_fields = cursor.number("Q"), cursor.number("Q")
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        key = cursor.text()
        if key in fields:
            raise cursor.damaged(f"{key} is there twice")
        fields[key] = cursor.value(cursor.number("I"))
    entries = [_read_entry(cursor) for _ in range(num_tensors)]
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
        raise cursor.damaged(f"an alignment of {alignment!r}")
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise cursor.damaged(f"{name} is there twice")
        tensors[name] = _tensor(cursor, name, shape, kind, data_start + offset, block_sizes)
    _check_extents(cursor, tensors)
    return GgufHeader(fields, tensors, cursor.size)


def _read_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, num_dims = cursor.text(), cursor.number("I")
    if not 1 <= num_dims <= _MAX_DIMS:
        raise cursor.damaged(f"{name} has {num_dims} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(num_dims))[::-1]
    return name, shape, cursor.number("I"), cursor.number("Q")


def _tensor(
    cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, offset: int, block_sizes: dict[int, tuple[int, int]]
) -> GgufTensor:
    if kind not in block_sizes:
        raise cursor.damaged(f"{name} has unknown type {kind}")
    block, block_bytes = block_sizes[kind]
    if 0 in shape or shape[-1] % block:
        raise cursor.damaged(f"{name} has shape {list(shape)} in blocks of {block}")
    return GgufTensor(name, shape, kind, offset, shape[-1] // block * block_bytes)


def _check_extents(cursor: _Cursor, tensors: dict[str, GgufTensor]) -> None:
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise cursor.damaged(f"{tensor.name} overlaps another tensor")
        end = tensor.offset + tensor.nbytes
        if end > cursor.size:
            raise cursor.damaged(f"{tensor.name} ends at byte {end}, the file at {cursor.size}")
