"""safetensors files: validated reading (mmap or pread) and streaming, atomic writing.

The format: 8 bytes little-endian length of the header, the header (JSON, may end in spaces), the bytes of the tensors
without gaps. https://github.com/huggingface/safetensors#format

A mapped file that shrinks kills its reader with SIGBUS, and nothing short of copying the file prevents that. So:
`read` uses pread and never touches the map; `raw` maps, and whoever keeps its views calls `check_unchanged` before each
batch of work (an fstat, about a microsecond). A truncation in the very microseconds of a batch still kills; replacing
a file by rename, as everything here writes, never touches the bytes that are mapped.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from penjing.errors import PenjingError
from penjing.files import AtomicFile, os_error

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

#: how each dtype is seen by numpy; BF16 and the 8-bit floats have no numpy type and are seen as their bits
VIEWS: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(view)
    for name, view in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": "<u2",
        "F8_E4M3": "u1",
        "F8_E5M2": "u1",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U64": "<u8",
        "U32": "<u4",
        "U16": "<u2",
        "U8": "u1",
        "BOOL": "u1",
    }.items()
}
_READABLE: Final = ("F64", "F32", "F16", "BF16")
_MAX_HEADER: Final = 100_000_000  # the library's own limit
_MAX_BYTES: Final = (1 << 63) - 1
_READ_BYTES: Final = 16 << 20  # converted piece by piece, so that a float32 copy costs little more than itself
_DAMAGED: Final = "the file is damaged or not a safetensors file: copy or download it again"
_CONVERT: Final = "convert the model to bfloat16"


class TensorSpec(NamedTuple):
    """What a tensor is: dtype as safetensors names it, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * VIEWS[self.dtype].itemsize

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.nbytes // self.num_rows if self.num_rows else 0


def ask_for_huge_pages(mapped: mmap.mmap) -> None:
    """Have what is not in memory yet read and mapped 2 MB at a time, where the kernel and its file system can.

    Decoding walks through a whole file for each token, a page of 4 KB after the other: 4 to 8% of its time.
    """
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE)


class SafetensorsFile:
    """An open, validated safetensors file.

    `tensors`: name to TensorSpec in file order. `metadata`: the header's strings. `offsets`: name to the position of
    its first byte in the file. `header_bytes`: length of the JSON without the spaces at its end; `data_start`: where
    tensors begin. Raises PenjingError on anything that is not a well-formed file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map: mmap.mmap | None = None
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, self.path) from error
        self._close_descriptor = weakref.finalize(self, os.close, self._descriptor)
        try:
            self._stamp = self._stat()
            self._read_header()
            with safe_open(str(self.path), framework="np"):
                pass  # the library's own checks: opening makes them all
            self.check_unchanged()
        except (SafetensorError, UnicodeError) as error:
            self.close()
            raise self._damaged(str(error)) from error
        except OSError as error:
            self.close()
            raise os_error(error, self.path) from error
        except BaseException:
            self.close()
            raise

    @property
    def file_bytes(self) -> int:
        return self._stamp[0]

    def raw(self, name: str) -> NDArray[Any]:
        """The tensor in the map: read-only, no copy, seen through `VIEWS`."""
        spec = self.tensors[name]
        if self._map is None:
            self.check_unchanged()
            self._map = mmap.mmap(self._descriptor, self.file_bytes, access=mmap.ACCESS_READ)
            ask_for_huge_pages(self._map)
        flat: NDArray[Any] = np.frombuffer(
            self._map, VIEWS[spec.dtype], count=math.prod(spec.shape), offset=self.offsets[name]
        )
        return flat.reshape(spec.shape)

    def read(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Rows of the first axis (all of them by default) of a float tensor as a fresh float32 array."""
        spec = self.tensors[name]
        if spec.dtype not in _READABLE:
            raise PenjingError(
                f"{spec.dtype} weights are not supported",
                where=self._place(name),
                attempt="convert the model to bfloat16",
            )
        start, stop, step = (rows or slice(None)).indices(spec.num_rows)
        if step != 1:
            raise ValueError(f"rows must be consecutive, not {rows}")
        stop = max(start, stop)
        shape = (stop - start, *spec.shape[1:]) if spec.shape else ()
        out = np.empty(math.prod(shape), np.float32)
        row_size = math.prod(spec.shape[1:])
        self._read_floats(spec.dtype, self.offsets[name] + start * spec.row_bytes, out[: (stop - start) * row_size])
        return out.reshape(shape)

    def read_bytes(self, offset: int, size: int) -> bytes:
        """Bytes of the file as they are. PenjingError if it has become shorter."""
        try:
            return self._pread(size, offset)
        except OSError as error:
            raise os_error(error, self.path) from error

    def check_unchanged(self) -> None:
        """Raise PenjingError if the file's size or time of change is not what it was when it was opened."""
        if self._stat() != self._stamp:
            raise PenjingError("the file changed while it was open", where=str(self.path), attempt="open it again")

    def close(self) -> None:
        """Close the file. Views that are still held stay valid; the map goes with the last of them."""
        self._map = None
        self._close_descriptor()  # once, whoever calls
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def _pread(self, size: int, offset: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                raise PenjingError("the file ends too early", where=str(self.path), attempt=_DAMAGED)
            data += more
        return data

    def _read_floats(self, dtype: str, offset: int, out: NDArray[np.float32]) -> None:
        """Fill `out` with the floats that begin at `offset`."""
        view = VIEWS[dtype]
        step = _READ_BYTES // view.itemsize
        for begin in range(0, out.size, step):
            piece = out[begin : begin + step]
            data = self.read_bytes(offset + begin * view.itemsize, piece.size * view.itemsize)
            values = np.frombuffer(data, view)
            if dtype == "BF16":
                np.left_shift(values, 16, out=piece.view(np.uint32), dtype=np.uint32)
            else:
                piece[:] = values

    def _read_header(self) -> None:
        if self.file_bytes < 8:
            raise self._damaged(f"{self.file_bytes} bytes are too few for a header")
        length = int.from_bytes(self._pread(8, 0), "little")
        if not 2 <= length <= min(_MAX_HEADER, self.file_bytes - 8):
            raise self._damaged(f"a header of {length} bytes in a file of {self.file_bytes}")
        text = self._pread(length, 8)
        self.header_bytes = len(text.rstrip(b" "))
        self.data_start = 8 + length
        header = self._parse(text)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise self._damaged("metadata that is not strings")
        self.metadata: dict[str, str] = metadata
        self._index_tensors(header)

    def _parse(self, text: bytes) -> dict[str, Any]:
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            if len(dict(pairs)) != len(pairs):
                raise ValueError("a name that is there twice")
            return dict(pairs)

        try:
            header = json.loads(text.decode(), object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"unreadable header: {error}") from error
        if not isinstance(header, dict):
            raise self._damaged("a header that is not an object")
        return header

    def _index_tensors(self, header: dict[str, Any]) -> None:
        spans: list[tuple[int, int, str, TensorSpec]] = []
        for name, entry in header.items():
            spec, begin, end = self._entry(name, entry)
            spans.append((begin, end, name, spec))
        position = 0
        for begin, end, name, _ in sorted(spans, key=lambda span: span[:2]):
            if begin != position:
                raise self._damaged(f"tensors {'overlap' if begin < position else 'leave a gap'} at {name}")
            position = end
        if self.data_start + position != self.file_bytes:
            raise self._damaged(f"tensors end at byte {self.data_start + position}, the file at {self.file_bytes}")
        spans.sort(key=lambda span: span[:2])
        self.tensors: dict[str, TensorSpec] = {name: spec for _, _, name, spec in spans}
        self.offsets: dict[str, int] = {name: self.data_start + begin for begin, _, name, _ in spans}

    def _entry(self, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"unreadable entry for {name}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in VIEWS:
            raise PenjingError(f"dtype {dtype!r} is not supported", where=self._place(name), attempt=_CONVERT)
        if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
            raise self._damaged(f"shape {shape!r} at {offsets!r} for {name}")
        # zeros left out: numpy cannot hold a shape whose other sizes overflow, even if it is empty
        if math.prod(size for size in shape if size) * VIEWS[dtype].itemsize > _MAX_BYTES or len(shape) > 32:
            raise self._damaged(f"shape {shape!r} of {name} is too large")
        spec = TensorSpec(dtype, tuple(shape))
        begin, end = offsets
        if end - begin != spec.nbytes:
            raise self._damaged(f"{name} has {end - begin} bytes, its shape {shape} of {dtype} needs {spec.nbytes}")
        return spec, begin, end

    def _place(self, name: str) -> str:
        return f"{name} in {self.path}"

    def _damaged(self, problem: str) -> PenjingError:
        return PenjingError(f"not a sound safetensors file: {problem}", where=str(self.path), attempt=_DAMAGED)


def _counts(value: Any) -> bool:
    """A list of integers, none negative (JSON also brings floats, booleans and null)."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


class SafetensorsWriter:
    """A safetensors file that is written in pieces and appears when it is complete.

    Tensors are placed so that each starts at a multiple of 64 bytes, or of the largest power of two that divides its
    own size; otherwise in the order of `specs`. They may be filled in any order, by rows of their first axis; every row
    once. Data starts at a multiple of `align` and at least `header_reserve` spaces after the header.
    """

    def __init__(
        self,
        path: str | Path,
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str] | None = None,
        *,
        align: int = 64,
        header_reserve: int = 0,
    ) -> None:
        self._specs = {name: specs[name] for name in aligned_order(specs)}
        header = encode_header(self._specs, metadata or {}, align=align, header_reserve=header_reserve)
        self._offsets: dict[str, int] = {}
        self.file_bytes = len(header)
        for name, spec in self._specs.items():
            self._offsets[name] = self.file_bytes
            self.file_bytes += spec.nbytes
        self._missing = {name: np.ones(spec.num_rows, bool) for name, spec in self._specs.items() if spec.nbytes}
        self._file = AtomicFile(Path(path))
        try:
            self._file.write_at(header, 0)
        except BaseException:
            self._file.abandon()
            raise

    def write(self, name: str, array: NDArray[Any], start_row: int = 0) -> None:
        """Fill rows start_row… of a tensor. `array` must be what `VIEWS` says, with the tensor's inner shape."""
        spec = self._specs[name]
        rows = array.shape[0] if spec.shape else 1
        if array.dtype != VIEWS[spec.dtype] or array.shape[1:] != spec.shape[1:] or start_row + rows > spec.num_rows:
            raise ValueError(f"{name} is {spec}, not {array.dtype} {array.shape} at row {start_row}")
        if not array.size:
            return
        missing = self._missing[name][start_row : start_row + rows]
        if not missing.all():
            raise ValueError(f"{name}: rows {start_row} to {start_row + rows} written twice")
        missing[:] = False
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._file.write_at(data, self._offsets[name] + start_row * spec.row_bytes)

    def finish(self, *, forget: bool = False) -> None:
        """Check that every byte was written, then let the file appear under its name. `forget`: see AtomicFile."""
        for name, missing in self._missing.items():
            if missing.any():
                raise ValueError(f"{name}: {int(missing.sum())} of {missing.size} rows were never written")
        self._file.finish(forget=forget)

    def abandon(self) -> None:
        """Leave nothing behind. Harmless after `finish`."""
        self._file.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()


def aligned_order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Names by falling alignment of their sizes (64 at most): then each start is as aligned as its size."""
    return sorted(specs, key=lambda name: -min(64, specs[name].nbytes & -specs[name].nbytes or 64))


def encode_header(
    specs: Mapping[str, TensorSpec],
    metadata: Mapping[str, str],
    *,
    align: int = 64,
    header_reserve: int = 0,
    at_least: int = 0,
) -> bytes:
    """Length and JSON, ended by spaces so that the next byte is at a multiple of `align`. Same input, same bytes.

    `specs` in the order of the file. The result has `at_least` so many bytes, with `header_reserve` spaces among them.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name, spec in specs.items():
        end = position + spec.nbytes
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    size = -(-max(8 + len(text) + header_reserve, at_least) // align) * align - 8
    return size.to_bytes(8, "little") + text.ljust(size)
