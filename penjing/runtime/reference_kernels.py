"""What the engine's matrix kernels compute, in numpy: every step of the layout and of the rounding spelled out.

`reference.py` has the meaning of the other kernels; this file reads the packed bytes themselves, as
`csrc/include/penjing.h` describes them, one code at a time.
Shapes: P panels of 16 rows, O outputs, I inputs, N groups, G inputs of a group, C columns (tokens).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LANES: Final = 16

#: bits of a code to the widths of its planes, the lowest first
PLANES: Final = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}

#: activations smaller than this count as zero: 127 / amax would overflow a float32
SMALLEST_AMAX: Final = 2.0**-100


def unpack_group(packed: NDArray[np.uint8], bits: int, group_size: int) -> NDArray[np.int64]:
    """Codes [16 rows, G] of one group of one panel, from its bytes."""
    stride = -(-group_size // LANES) * LANES
    code = np.zeros((LANES, group_size), np.int64)
    first_byte = first_bit = 0
    for width in PLANES[bits]:
        plane = packed[first_byte : first_byte + stride * LANES * width // 8]
        for lane in range(LANES):
            for i in range(group_size):
                block, entry = i // 4, 4 * lane + i % 4
                code[lane, i] += _plane_entry(plane, width, block, entry) << first_bit
        first_byte += len(plane)
        first_bit += width
    return code


def _plane_entry(plane: NDArray[np.uint8], width: int, block: int, entry: int) -> int:
    """Entry 0..63 of a block of 4 inputs: blocks share bytes, but in a plane of single bits entries do."""
    if width == 1:
        return int(plane[8 * block + entry // 8]) >> (entry % 8) & 1
    blocks_per_byte = 8 // width
    byte = int(plane[64 * (block // blocks_per_byte) + entry])
    return byte >> (width * (block % blocks_per_byte)) & ((1 << width) - 1)


def unpack_ternary(packed: NDArray[np.uint8], num_groups: int, group_size: int) -> NDArray[np.int64]:
    """Codes [16 rows, N, G] of one panel, from its bytes: three times a byte is the next digit, and what follows it."""
    stride = -(-group_size // LANES) * LANES
    code = np.zeros((LANES, num_groups, group_size), np.int64)
    for group, i, lane in np.ndindex(num_groups, group_size, LANES):
        unit, block = divmod((group * stride + i) // 4, 4)
        fives, place = divmod(unit, 5)
        part, digit = (place, 1 + block) if place < 4 else (block, 0)
        left = int(packed[256 * fives + 64 * part + 4 * lane + i % 4])
        code[lane, group, i] = 3 * (left * 3**digit % 256) // 256
    return code


def dequantize(
    packed_PB: NDArray[np.uint8],
    scale_PNL: NDArray[np.float16],
    zero_PNL: NDArray[np.uint8] | None,
    *,
    bits: int,
    group_size: int,
    levels: str = "uniform",
    book_K: NDArray[np.int8] | None = None,
) -> NDArray[np.float64]:
    """Weights [16 P, I], padding rows included: (code - zero) * scale. packed_PB: the bytes of each panel.

    Of 1 bit (2 code - 1) * scale, of ternary codes (code - 1) * scale, with a book its entry times the scale.
    """
    num_panels, num_groups, _ = scale_PNL.shape
    group_bytes = packed_PB.shape[1] // num_groups
    weight = np.empty((num_panels, LANES, num_groups, group_size))
    for panel in range(num_panels):
        scale_NL1 = scale_PNL[panel].astype(np.float64)[..., None]
        if levels == "ternary":
            code_LNG = unpack_ternary(packed_PB[panel], num_groups, group_size)
            weight[panel] = (code_LNG - 1) * scale_NL1.transpose(1, 0, 2)
            continue
        for group in range(num_groups):
            packed = packed_PB[panel, group * group_bytes : (group + 1) * group_bytes]
            zero_L = np.full(LANES, 1 << (bits - 1)) if zero_PNL is None else zero_PNL[panel, group].astype(np.int64)
            code_LG = unpack_group(packed, bits, group_size)
            step_LG = 2 * code_LG - 1 if bits == 1 else code_LG - zero_L[:, None]
            step_LG = step_LG if book_K is None else book_K[code_LG]
            weight[panel, :, group] = step_LG * scale_NL1[group]
    return weight.reshape(num_panels * LANES, num_groups * group_size)


def quantize_columns(
    x_CI: NDArray[np.float32], group_size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Codes [C, N, G] in -127..127, scales [C, N] and sums of the codes [C, N]; a group is about code * scale.

    In float32, because a code depends on how its value was rounded. A group with infinity or NaN has scale NaN.
    """
    x_CNG = x_CI.astype(np.float32).reshape(len(x_CI), -1, group_size)
    finite_CN = np.asarray(np.isfinite(x_CNG).all(axis=2))
    amax_CN = np.where(finite_CN, np.abs(np.nan_to_num(x_CNG)).max(axis=2), np.float32(0))
    zero_CN = amax_CN < SMALLEST_AMAX
    inverse_CN = np.where(zero_CN, np.float32(0), np.float32(127) / np.where(zero_CN, np.float32(1), amax_CN))
    code_CNG = np.rint(np.where(finite_CN[..., None], x_CNG, np.float32(0)) * inverse_CN[..., None]).astype(np.int64)
    scale_CN = np.where(zero_CN, np.float32(0), amax_CN / np.float32(127))
    scale_CN = np.where(finite_CN, scale_CN, np.float32(np.nan)).astype(np.float32)
    return code_CNG, scale_CN, code_CNG.sum(axis=2)


def linear_codes(weight_OI: NDArray[Any], x_CI: NDArray[np.float32], group_size: int) -> NDArray[np.float64]:
    """y_CO of weights from `dequantize` (without bias): the activations rounded to 8 bits a group, all else exact."""
    code_CNG, scale_CN, _ = quantize_columns(x_CI, group_size)
    rounded_CNG = code_CNG * scale_CN[..., None].astype(np.float64)
    return np.asarray(rounded_CNG.reshape(x_CI.shape) @ weight_OI.T, np.float64)


def unpack_float(weight_PIL: NDArray[Any]) -> NDArray[np.float64]:
    """Weights [16 P, I] of float panels [P, I, 16]; uint16 panels are bfloat16."""
    if weight_PIL.dtype == np.uint16:
        weight_PIL = (weight_PIL.astype(np.uint32) << 16).view(np.float32)
    num_inputs = weight_PIL.shape[1]
    weight_OI: NDArray[np.float64] = weight_PIL.astype(np.float64).transpose(0, 2, 1).reshape(-1, num_inputs)
    return weight_OI
