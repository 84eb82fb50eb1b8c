"""Scales of groups in 8 bits: those float16 of which fewer bits say all.

A byte is the sign, the lower four bits of the exponent and the upper three of the mantissa, of a float16 whose other
bits are 0: 2^-17 to 1.875, and 0, relative steps of 1/8 to 1/16 from 2^-14 on. Next to codes of up to 4 bits that is
exact enough. Error of six matrices of SmolLM2, books in groups of 32 and 64, over that of zeros:

    bits  scales of 16 bits   of 8
    2     0.0854   0.1030     0.0860   0.1032
    3     0.0216   0.0280     0.0222   0.0285
    4     0.0052   0.0072     0.0058   0.0077

while half of the scales' bytes is a quarter of a bit a weight in groups of 32, an eighth in groups of 64.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SCALE_BITS: Final = (16, 8)
LARGEST: Final = 1.875
SMALLEST: Final = 2.0**-17  # but for 0
_SIGN, _REST, _DROPPED = 0x8000, 0x3F80, 7


def pack_scales(scale: NDArray[np.float16]) -> NDArray[np.uint8]:
    """ValueError unless 8 bits hold all of them exactly."""
    bits = scale.view(np.uint16)
    if (bits & ~np.uint16(_SIGN | _REST)).any():
        raise ValueError("a scale that 8 bits do not hold")
    packed: NDArray[np.uint8] = ((bits & _SIGN) >> 8 | (bits & _REST) >> _DROPPED).astype(np.uint8)
    return packed


def unpack_scales(packed: NDArray[np.uint8]) -> NDArray[np.float16]:
    """The inverse of `pack_scales`."""
    wide = packed.astype(np.uint16)
    return ((wide & 0x80) << 8 | (wide & 0x7F) << _DROPPED).astype(np.uint16).view(np.float16)
