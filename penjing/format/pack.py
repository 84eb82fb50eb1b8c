"""Codes and floats to the bytes that kernels read, and back. The layout is told in csrc/include/penjing.h.

Shapes: O outputs, I inputs, N groups a row, G inputs a group, S = G rounded up to 16 (the stride), P panels of 16
outputs (lanes, L), B = S / 4 blocks of 4 inputs, E = 64 entries of a block (4 * lane + input), K entries of a book.
Everything goes panel by panel: temporaries stay small whatever the matrix's size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.format.planes import (
    ENTRIES,
    PLANES,
    Codes,
    bits_bytes,
    pack_bits,
    pack_ternary,
    ternary_bytes,
    unpack_bits,
    unpack_ternary,
)
from penjing.format.safetensors_file import VIEWS, TensorSpec
from penjing.format.scales import SCALE_BITS, pack_scales, unpack_scales

LANES: Final = 16
#: what codes stand for to the bits that they may have
LEVELS: Final[dict[str, tuple[int, ...]]] = {"uniform": tuple(PLANES), "ternary": (2,), "book": (2, 3, 4)}
#: the largest group whose sum of code * activation (255 * 127 each) stays inside an int32
MAX_GROUP: Final = 1 << 16
_MAX_SIZE: Final = 1 << 24  # of rows and columns, as in Architecture
_CHUNK: Final = 1 << 22  # weights packed at a time

Kind = Literal["codes", "f32", "f16", "bf16"]
Levels = Literal["uniform", "ternary", "book"]
FLOAT_DTYPES: Final[dict[str, str]] = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
Scales = NDArray[np.float16]
Zeros = NDArray[np.uint8]
Book = NDArray[np.int8]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a matrix of `rows` outputs by `cols` inputs is stored. The fields from `bits` on: codes only.

    `levels`: "uniform": weight = (code - zero) * scale. A symmetric layout has no zero points: they are 2^(bits-1)
    everywhere; of 1 bit, codes 0 and 1 stand for -1 and +1. "ternary": codes 0, 1, 2 stand for -1, 0, +1; `bits` is 2,
    stored are 1.6. "book": code k stands for entry k of the matrix's book of 2^bits int8. These are always symmetric.
    `scale_bits`: of a scale, see format/scales.py.
    """

    kind: Kind
    rows: int
    cols: int
    bits: int = 0
    group_size: int = 0
    symmetric: bool = True
    levels: Levels = "uniform"
    scale_bits: int = 16

    @classmethod
    def from_fields(cls, fields: Any, *, where: str) -> Layout:
        """A layout from JSON that nobody vouches for. Raises PenjingError unless it is one that `check` accepts."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or not fields.keys() <= names or not {"kind", "rows", "cols"} <= fields.keys():
            raise PenjingError("unreadable layout", where=where, attempt="pack the model again")
        layout = cls(**fields)
        layout.check(where=where)
        return layout

    def to_fields(self) -> dict[str, Any]:
        """For JSON, and back through `from_fields`. What all files had before there was a choice is not said."""
        unsaid = {"levels": "uniform", "scale_bits": 16}
        return {name: value for name, value in dataclasses.asdict(self).items() if unsaid.get(name) != value}

    def check(self, *, where: str) -> None:
        """Raise PenjingError unless this layout can be packed."""
        sizes = (self.rows, self.cols, self.bits, self.group_size, self.scale_bits)
        if any(type(size) is not int for size in sizes) or type(self.symmetric) is not bool:
            raise PenjingError(f"unreadable layout: {self}", where=where, attempt="pack the model again")
        if self.kind not in get_args(Kind):
            raise PenjingError(f"unknown layout {self.kind!r}", where=where, attempt="use a newer penjing")
        if self.levels not in get_args(Levels):
            raise PenjingError(
                f"unknown levels {self.levels!r}", where=where, attempt=f"{', '.join(LEVELS)}, or a newer penjing"
            )
        if not (1 <= self.rows <= _MAX_SIZE and 1 <= self.cols <= _MAX_SIZE):
            raise PenjingError(
                f"impossible size {self.rows} x {self.cols}", where=where, attempt="pack the model again"
            )
        if self.kind == "codes":
            if self.bits not in LEVELS[self.levels]:
                offer = ", ".join(map(str, LEVELS[self.levels]))
                fact = f"{self.bits} bits are not supported" + ("" if self.levels == "uniform" else f" ({self.levels})")
                raise PenjingError(fact, where=where, attempt=f"--set bits=N: {offer}")
            if not self.symmetric and (self.levels != "uniform" or self.bits == 1):
                fact = f"{self.bits} bits ({self.levels}) have no zero points"
                raise PenjingError(fact, where=where, attempt="--set symmetric=yes")
            if self.scale_bits not in SCALE_BITS:
                offer = ", ".join(map(str, SCALE_BITS))
                raise PenjingError(
                    f"scales of {self.scale_bits} bits are not supported",
                    where=where,
                    attempt=f"--set scale_bits=N: {offer}",
                )
            check_group_size(self.cols, self.group_size, where=where)
        elif (self.bits, self.group_size, self.levels, self.scale_bits) != (0, 0, "uniform", 16):
            raise PenjingError(
                f"a float layout with bits or groups: {self}", where=where, attempt="pack the model again"
            )

    @property
    def described(self) -> str:
        """For people, in a few words."""
        if self.kind != "codes":
            return self.kind
        name = {"uniform": f"{self.bits} bits", "ternary": "ternary", "book": f"{self.bits} bits by a book"}[
            self.levels
        ]
        more = ("" if self.symmetric else ", zero points") + (", 8-bit scales" if self.scale_bits == 8 else "")
        return f"{name}, groups of {self.group_size}{more}"

    @property
    def num_panels(self) -> int:
        return -(-self.rows // LANES)

    @property
    def num_groups(self) -> int:
        return self.cols // self.group_size

    @property
    def stride(self) -> int:
        """Inputs of a group with its padding."""
        return -(-self.group_size // 16) * 16

    @property
    def panel_bytes(self) -> int:
        """Bytes of one panel of codes or floats (scales and zero points not counted)."""
        if self.levels == "ternary":
            return ternary_bytes(self.num_groups * self.stride // 16)
        if self.kind == "codes":
            return bits_bytes(self.bits, self.num_groups * self.stride // 4)
        return self.cols * LANES * VIEWS[FLOAT_DTYPES[self.kind]].itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(spec.nbytes for spec in self.tensor_specs().values())

    @property
    def payload_bytes(self) -> int:
        """What `nbytes` would be without padded lanes and inputs (rounded up to a whole byte)."""
        if self.kind != "codes":
            return self.rows * self.cols * VIEWS[FLOAT_DTYPES[self.kind]].itemsize
        group_bytes = self.scale_bits // 8 + (not self.symmetric)
        weights = self.rows * self.cols
        code_bytes = -(-weights // 5) if self.levels == "ternary" else -(-weights * self.bits // 8)
        return code_bytes + self.rows * self.num_groups * group_bytes + self.book_size

    @property
    def num_codes(self) -> int:
        return 3 if self.levels == "ternary" else 1 << self.bits

    @property
    def book_size(self) -> int:
        return self.num_codes if self.levels == "book" else 0

    def tensor_specs(self) -> dict[str, TensorSpec]:
        """Suffix to what is stored under it: codes and scales, perhaps zeros or a book; or weight."""
        if self.kind != "codes":
            return {"weight": TensorSpec(FLOAT_DTYPES[self.kind], (self.num_panels, self.cols, LANES))}
        groups = (self.num_panels, self.num_groups, LANES)
        scales = TensorSpec("U8" if self.scale_bits == 8 else "F16", groups)
        specs = {"codes": TensorSpec("U8", (self.num_panels, self.panel_bytes)), "scales": scales}
        if self.levels == "book":
            specs["book"] = TensorSpec("I8", (self.book_size,))
        return specs if self.symmetric else specs | {"zeros": TensorSpec("U8", groups)}


def level_values(bits: int, levels: str, book_K: Book | None = None) -> NDArray[np.int16]:
    """What each code of a symmetric matrix stands for, in units of the scale."""
    if levels == "book":
        if book_K is None or book_K.shape != (1 << bits,):
            raise ValueError(f"a book of {1 << bits} entries, not {book_K}")
        return book_K.astype(np.int16)
    if levels == "ternary":
        return np.array([-1, 0, 1], np.int16)
    if bits == 1:
        return np.array([-1, 1], np.int16)
    return np.arange(1 << bits, dtype=np.int16) - np.int16(1 << (bits - 1))


def check_group_size(cols: int, group_size: int, *, where: str) -> None:
    """Raise PenjingError, with a size that would do, unless groups of `group_size` fill rows of `cols` inputs."""
    if 1 <= group_size <= MAX_GROUP and cols % group_size == 0:
        return
    divisors = [size for size in range(1, min(cols, MAX_GROUP) + 1) if cols % size == 0]
    # groups under 16 are padded to 16 in the file, so they cost more than they are worth
    best = max((size for size in divisors if 16 <= size <= group_size), default=None)
    best = best or min((size for size in divisors if size >= 16), default=divisors[-1])
    fact = f"group_size {group_size} does not divide {cols} inputs"
    if group_size > MAX_GROUP:
        fact = f"group_size {group_size} is more than {MAX_GROUP}"
    raise PenjingError(fact, where=where, attempt=f"--set group_size={best}")


def pack_codes(
    layout: Layout, code_OI: Codes, scale_ON: Scales, zero_ON: Zeros | None, book_K: Book | None = None
) -> dict[str, NDArray[Any]]:
    """Codes, scales, zero points and book as stored: see `Layout.tensor_specs`. Padded lanes have scale 0.

    A chunk of a matrix is packed with a layout of as many rows, which must be a multiple of 16 but for the last chunk.
    """
    _expect(code_OI, (layout.rows, layout.cols), np.uint8, "codes")
    _expect(scale_ON, (layout.rows, layout.num_groups), np.float16, "scales")
    if code_OI.max(initial=0) >= layout.num_codes:
        raise ValueError(f"a code of {code_OI.max()} where there are {layout.num_codes}")
    if (layout.levels == "book") != (book_K is not None):
        raise ValueError("a layout with a book needs one, others have none")
    if layout.symmetric != (zero_ON is None):
        raise ValueError("a symmetric layout has no zero points, an asymmetric one has them")
    packed: dict[str, NDArray[Any]] = {
        name: np.empty(spec.shape, VIEWS[spec.dtype]) for name, spec in layout.tensor_specs().items()
    }
    for panels in _panel_chunks(layout):
        rows = slice(panels.start * LANES, panels.stop * LANES)
        packed["codes"][panels] = _pack_panels(layout, code_OI[rows])
    packed["scales"][:] = _to_lanes(pack_scales(scale_ON) if layout.scale_bits == 8 else scale_ON)
    if zero_ON is not None:
        _expect(zero_ON, (layout.rows, layout.num_groups), np.uint8, "zeros")
        packed["zeros"][:] = _to_lanes(zero_ON)
    if book_K is not None:
        _expect(book_K, (layout.book_size,), np.int8, "a book")
        packed["book"][:] = book_K
    return packed


def unpack_codes(
    layout: Layout, tensors: Mapping[str, NDArray[Any]], panels: slice | None = None
) -> tuple[Codes, Scales, Zeros | None]:
    """The inverse of `pack_codes` for some panels: codes [O, I], scales and, unless symmetric, zero points [O, N]."""
    start, stop, _ = (panels or slice(None)).indices(layout.num_panels)
    rows = max(0, min(stop * LANES, layout.rows) - start * LANES)
    chosen = slice(start, stop)
    code_OI = _unpack_panels(layout, tensors["codes"][chosen])[:rows]
    stored_ON = _from_lanes(tensors["scales"][chosen])[:rows]
    scale_ON: Scales = unpack_scales(stored_ON) if layout.scale_bits == 8 else stored_ON
    zero_ON: Zeros | None = None if layout.symmetric else _from_lanes(tensors["zeros"][chosen])[:rows]
    return code_OI, scale_ON, zero_ON


def pack_float(layout: Layout, weight_OI: NDArray[np.float32], *, where: str = "") -> dict[str, NDArray[Any]]:
    """Floats as stored, rounded to nearest even. PenjingError if a value is not finite, or would not be any more."""
    _expect(weight_OI, (layout.rows, layout.cols), np.float32, "weights")
    spec = layout.tensor_specs()["weight"]
    weight_PIL = np.empty(spec.shape, VIEWS[spec.dtype])
    for panels in _panel_chunks(layout):
        chunk_OI = weight_OI[panels.start * LANES : panels.stop * LANES]
        weight_PIL[panels] = _to_lanes(round_floats(chunk_OI, layout.kind, where=where))
    return {"weight": weight_PIL}


def unpack_float(
    layout: Layout, tensors: Mapping[str, NDArray[Any]], panels: slice | None = None
) -> NDArray[np.float32]:
    """The inverse of `pack_float` for some panels: float32 [O, I]."""
    start, stop, _ = (panels or slice(None)).indices(layout.num_panels)
    rows = max(0, min(stop * LANES, layout.rows) - start * LANES)
    return widen_floats(_from_lanes(tensors["weight"][start:stop])[:rows], layout.kind)


def dequantize(layout: Layout, tensors: Mapping[str, NDArray[Any]], rows: slice | None = None) -> NDArray[np.float32]:
    """Some rows (all by default) as float32 [O, I]: floats as they are, codes by their meaning times the scale."""
    start, stop, step = (rows or slice(None)).indices(layout.rows)
    if step != 1:
        raise ValueError(f"rows must be consecutive, not {rows}")
    stop = max(start, stop)
    out_OI = np.empty((stop - start, layout.cols), np.float32)
    for panels in _panel_chunks(layout, slice(start // LANES, -(-stop // LANES))):
        if layout.kind == "codes":
            chunk_OI = _scale_codes(layout, *unpack_codes(layout, tensors, panels), tensors.get("book"))
        else:
            chunk_OI = unpack_float(layout, tensors, panels)
        first = panels.start * LANES
        low, high = max(start, first), min(stop, first + len(chunk_OI))
        out_OI[low - start : high - start] = chunk_OI[low - first : high - first]
    return out_OI


def _scale_codes(
    layout: Layout, code_OI: Codes, scale_ON: Scales, zero_ON: Zeros | None, book_K: Book | None
) -> NDArray[np.float32]:
    """(code - zero) * float32(scale): the difference is exact, so there is one rounding a weight."""
    code_ONG = code_OI.reshape(*scale_ON.shape, -1)
    if zero_ON is None:
        step_ONG = level_values(layout.bits, layout.levels, book_K).astype(np.float32)[code_ONG]
    else:
        step_ONG = code_ONG.astype(np.float32)
        step_ONG -= zero_ON[:, :, None]
    step_ONG *= scale_ON[:, :, None].astype(np.float32)
    return step_ONG.reshape(code_OI.shape)


def round_floats(weight: NDArray[np.float32], kind: str, *, where: str = "") -> NDArray[Any]:
    """float32 to f32, f16 or bf16 (as uint16 bits), to nearest even. PenjingError if the result is not all finite."""
    if not np.isfinite(weight).all():
        raise PenjingError("a weight is NaN or infinite", where=where, attempt="repair or train the model again")
    if kind == "f32":
        return weight
    if kind == "f16":
        with np.errstate(over="ignore"):
            half = weight.astype(np.float16)
        if not np.isfinite(half).all():
            largest = np.abs(weight).max()
            raise PenjingError(f"{largest:g} is too large for float16", where=where, attempt="bf16 instead of f16")
        return half
    bits = weight.view(np.uint32)
    # half a unit of the last kept place, less one where that place is even, carries into it exactly when it should
    rounded: NDArray[np.uint16] = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    if ((rounded & 0x7F80) == 0x7F80).any():
        largest = np.abs(weight).max()
        raise PenjingError(f"{largest:g} is too large for bfloat16", where=where, attempt="f32 instead of bf16")
    return rounded


def widen_floats(values: NDArray[Any], kind: str) -> NDArray[np.float32]:
    """f32, f16 or bf16 (as uint16 bits) to float32, exactly."""
    if kind == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _expect(array: NDArray[Any], shape: tuple[int, ...], dtype: type, what: str) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{what} must be {np.dtype(dtype)} {shape}, not {array.dtype} {array.shape}")


def _panel_chunks(layout: Layout, panels: slice | None = None) -> Iterator[slice]:
    """Slices that together are `panels`, each of about _CHUNK weights."""
    start, stop, _ = (panels or slice(None)).indices(layout.num_panels)
    step = max(1, _CHUNK // (LANES * layout.cols))
    for begin in range(start, stop, step):
        yield slice(begin, min(begin + step, stop))


def _to_lanes(rows_OX: NDArray[Any]) -> NDArray[Any]:
    """[O, X] to [P, X, 16], missing lanes zero."""
    rows, width = rows_OX.shape
    num_panels = -(-rows // LANES)
    if rows % LANES:
        padded = np.zeros((num_panels * LANES, width), rows_OX.dtype)
        padded[:rows] = rows_OX
        rows_OX = padded
    return rows_OX.reshape(num_panels, LANES, width).transpose(0, 2, 1)


def _from_lanes(lanes_PXL: NDArray[Any]) -> NDArray[Any]:
    """[P, X, 16] to [16 P, X]."""
    num_panels, width, _ = lanes_PXL.shape
    return lanes_PXL.transpose(0, 2, 1).reshape(num_panels * LANES, width)


def _pack_panels(layout: Layout, code_OI: Codes) -> Codes:
    """Codes of whole panels (the last may be short) as bytes [P, panel_bytes]."""
    num_panels, groups, stride = -(-len(code_OI) // LANES), layout.num_groups, layout.stride
    code_ONS = np.zeros((num_panels * LANES, groups, stride), np.uint8)
    code_ONS[: len(code_OI), :, : layout.group_size] = code_OI.reshape(len(code_OI), groups, layout.group_size)
    code_PLNBI = code_ONS.reshape(num_panels, LANES, groups, stride // 4, 4)
    code_PNBE = code_PLNBI.transpose(0, 2, 3, 1, 4).reshape(num_panels, groups, stride // 4, ENTRIES)
    if layout.levels == "ternary":
        return pack_ternary(code_PNBE.reshape(num_panels, -1, 4, ENTRIES))
    return pack_bits(code_PNBE, layout.bits)


def _unpack_panels(layout: Layout, bytes_PX: Codes) -> Codes:
    """The inverse of `_pack_panels`: codes [16 P, I]."""
    num_panels, groups, blocks = len(bytes_PX), layout.num_groups, layout.stride // 4
    if layout.levels == "ternary":
        code_PNBE = unpack_ternary(bytes_PX, groups * blocks // 4)
    else:
        code_PNBE = unpack_bits(bytes_PX, layout.bits, groups, blocks)
    code_PLNBI = code_PNBE.reshape(num_panels, groups, blocks, LANES, 4).transpose(0, 3, 1, 2, 4)
    code_ONS = code_PLNBI.reshape(num_panels * LANES, groups, layout.stride)
    return code_ONS[:, :, : layout.group_size].reshape(num_panels * LANES, layout.cols)
