"""Codes of whole panels to bytes and back: planes of bits, ternary codes five a byte. See csrc/include/penjing.h.

Shapes: P panels of 16 outputs (lanes), N groups a row, B blocks of 4 inputs in a group, E = 64 entries of a block
(4 * lane + input), U units of 4 blocks in a row (T = U rounded up to fives, in F fives), X bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]

ENTRIES: Final = 64  # of a block
#: bits of a code to the widths of its planes, lowest bits first
PLANES: Final[dict[int, tuple[int, ...]]] = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
#: what the digits of a ternary byte are worth: of the fifth unit's block, then of one unit's four blocks
_WORTH: Final = np.array([81, 27, 9, 3, 1], np.uint16)
_UNITS: Final = 5  # that share 4 * ENTRIES bytes


def bits_bytes(bits: int, num_blocks: int) -> int:
    """Bytes of `num_blocks` blocks, all planes together."""
    return num_blocks * ENTRIES * bits // 8


def pack_bits(code_PNBE: Codes, bits: int) -> Codes:
    """Codes of `bits` bits as bytes [P, X], group after group."""
    planes = [_pack_plane(code_PNBE >> np.uint8(shift) & _mask(width), width) for shift, width in _planes(bits)]
    return np.concatenate(planes, axis=-1).reshape(len(code_PNBE), -1)


def unpack_bits(bytes_PX: Codes, bits: int, num_groups: int, num_blocks: int) -> Codes:
    """The inverse of `pack_bits`: codes [P, N, B, E]. `num_blocks`: of a group."""
    bytes_PNX = bytes_PX.reshape(len(bytes_PX), num_groups, -1)
    code_PNBE = np.zeros((len(bytes_PX), num_groups, num_blocks, ENTRIES), np.uint8)
    begin = 0
    for shift, width in _planes(bits):
        end = begin + bits_bytes(width, num_blocks)
        code_PNBE |= _unpack_plane(np.ascontiguousarray(bytes_PNX[:, :, begin:end]), width) << np.uint8(shift)
        begin = end
    return code_PNBE


def ternary_bytes(num_units: int) -> int:
    """Bytes of a row of units, in one panel."""
    fives, rest = divmod(num_units, _UNITS)
    return ENTRIES * (4 * fives + rest)


def pack_ternary(code_PUKE: Codes) -> Codes:
    """Codes 0, 1, 2 of units of 4 blocks as bytes [P, X].

    Of five units, unit k < 4 has 64 bytes of its own, whose last four digits are its blocks; the first digits of all
    four are the blocks of the fifth. A byte is ceil(256 v / 243) for digits of value v: the next digit of a byte x is
    3 x >> 8, and what follows is 3 x mod 256, so that reading needs no division.
    """
    panels, units, blocks, entries = code_PUKE.shape
    fives = -(-units // _UNITS)
    code_PTKE = np.zeros((panels, fives * _UNITS, blocks, entries), np.uint8)
    code_PTKE[:, :units] = code_PUKE
    code_PFTKE = code_PTKE.reshape(panels, fives, _UNITS, blocks, entries)
    value_PFKE = code_PFTKE[:, :, 4] * _WORTH[0]
    value_PFKE = value_PFKE + (code_PFTKE[:, :, :4] * _WORTH[1:, None]).sum(axis=3, dtype=np.uint16)
    byte_PFKE = ((value_PFKE * np.uint32(256) + 242) // 243).astype(np.uint8)
    byte_PX: Codes = byte_PFKE.reshape(panels, -1)[:, : ternary_bytes(units)]
    return byte_PX


def unpack_ternary(bytes_PX: Codes, num_units: int) -> Codes:
    """The inverse of `pack_ternary`: codes [P, U, K, E]."""
    panels, fives = len(bytes_PX), -(-num_units // _UNITS)
    left_PX = np.zeros((panels, fives * 4 * ENTRIES), np.uint8)
    left_PX[:, : bytes_PX.shape[1]] = bytes_PX
    left_PFKE = left_PX.reshape(panels, fives, 4, ENTRIES)
    code_PFTKE = np.empty((panels, fives, _UNITS, 4, ENTRIES), np.uint8)
    for digit in range(5):
        times_three = left_PFKE * np.uint16(3)
        left_PFKE = times_three.astype(np.uint8)  # modulo 256
        if digit == 0:
            code_PFTKE[:, :, 4] = times_three >> 8
        else:
            code_PFTKE[:, :, :4, digit - 1] = times_three >> 8
    return code_PFTKE.reshape(panels, fives * _UNITS, 4, ENTRIES)[:, :num_units]


def _planes(bits: int) -> Iterator[tuple[int, int]]:
    """The lowest bit and the width of each plane."""
    shift = 0
    for width in PLANES[bits]:
        yield shift, width
        shift += width


def _pack_plane(plane_PNBE: Codes, width: int) -> Codes:
    """Values of `width` bits as bytes [P, N, X]."""
    panels, groups, blocks, entries = plane_PNBE.shape
    if width == 1:
        return np.packbits(plane_PNBE, axis=-1, bitorder="little").reshape(panels, groups, -1)
    share = 8 // width  # so many blocks share 64 bytes, the first in the lowest bits
    fields = plane_PNBE.reshape(panels, groups, blocks // share, share, entries)
    packed = fields[:, :, :, 0].copy()
    for index in range(1, share):
        packed |= fields[:, :, :, index] << (index * width)
    return packed.reshape(panels, groups, -1)


def _unpack_plane(bytes_PNX: Codes, width: int) -> Codes:
    """The inverse of `_pack_plane`: [P, N, B, E]."""
    panels, groups, _ = bytes_PNX.shape
    if width == 1:
        return np.unpackbits(bytes_PNX, axis=-1, bitorder="little").reshape(panels, groups, -1, ENTRIES)
    shared = bytes_PNX.reshape(panels, groups, -1, 1, ENTRIES)
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return (shared >> shifts & _mask(width)).reshape(panels, groups, -1, ENTRIES)


def _mask(width: int) -> np.uint8:
    return np.uint8((1 << width) - 1)
