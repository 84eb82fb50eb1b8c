"""Codes as the blocks of GGUF's simple types: 32 weights that share a float16 scale (and, of Q4_1 and Q5_1, a minimum).

A weight is a whole number of steps times a scale in float16, here and there, so Q4_0, Q5_0 and Q8_0 are exact: they
hold steps -8..7, -16..15 and -128..127. Q4_1 and Q5_1 hold steps from a minimum on, which is rounded to float16: less
than 1/128 (Q5_1: 1/64) of a step.

Shapes: O outputs, I inputs, N groups a row, B blocks a row, H = 16 bytes of a block's low nibbles.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 32
#: type to the least and the greatest step that it holds
_EXACT: Final = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-128, 127)}
#: type to how many steps there may be above a block's least
_FROM_MINIMUM: Final = {"Q4_1": 15, "Q5_1": 31}
#: smallest first; where both would do the one that is exact is no smaller, so size decides
_ORDER: Final = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def block_type(step_OI: NDArray[np.int16], group_size: int) -> str | None:
    """The smallest type that holds these steps; None where there is none, or where groups do not end on blocks."""
    if group_size % BLOCK:
        return None
    low, high = int(step_OI.min()), int(step_OI.max())
    step_OB = step_OI.reshape(len(step_OI), -1, BLOCK)
    span = int((step_OB.max(-1) - step_OB.min(-1)).max())
    for name in _ORDER:
        if name in _EXACT and _EXACT[name][0] <= low and high <= _EXACT[name][1]:
            return name
        if name in _FROM_MINIMUM and span <= _FROM_MINIMUM[name]:
            return name
    return None


def pack_blocks(name: str, step_OI: NDArray[np.int16], scale_ON: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Steps and their groups' scales as bytes [O, X] of the type that `block_type` chose."""
    rows, cols = step_OI.shape
    blocks = cols // BLOCK
    step_OBI = step_OI.reshape(rows, blocks, BLOCK)
    scale_OB = scale_ON.repeat(blocks // scale_ON.shape[1], axis=1)
    fields = [_bytes(scale_OB)]
    if name in _FROM_MINIMUM:
        least_OB = step_OBI.min(-1)
        fields.append(_bytes((least_OB * scale_OB.astype(np.float32)).astype(np.float16)))
        code_OBI = (step_OBI - least_OB[..., None]).astype(np.uint8)
    else:
        code_OBI = (step_OBI - (0 if name == "Q8_0" else _EXACT[name][0])).astype(np.uint8)
    if name == "Q8_0":
        fields.append(code_OBI)
    else:
        if name in ("Q5_0", "Q5_1"):
            fields.append(np.packbits(code_OBI >> 4, axis=-1, bitorder="little"))
        low_OBI = code_OBI & 15
        fields.append(low_OBI[..., : BLOCK // 2] | low_OBI[..., BLOCK // 2 :] << 4)
    return np.concatenate(fields, axis=-1).reshape(rows, -1)


def _bytes(value_OB: NDArray[np.float16]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(value_OB.astype("<f2")).view(np.uint8).reshape(*value_OB.shape, 2)
