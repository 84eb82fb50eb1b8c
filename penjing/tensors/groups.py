"""Quantized matrices: each row in groups of consecutive inputs that share a scale and a zero point.

Shapes: O outputs, I inputs, N groups a row, G inputs a group, K entries of a book.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from penjing.format.pack import level_values


@dataclass(frozen=True, eq=False, kw_only=True)
class Quantized:
    """Codes are unsigned; what they stand for (`format.pack.Layout` tells) times the scale is the weight.

    Without `zero_ON` (symmetric) the zero point is 2^(bits-1) everywhere; of 1 bit, codes 0 and 1 stand for -1 and +1.
    levels "ternary" (bits is 2): codes 0, 1, 2 stand for -1, 0, +1. "book": code k stands for `book_K[k]`, bits 2 to 4.
    scale_bits: 8 where scales are such as 8 bits hold (format/scales.py).
    """

    code_ONG: torch.Tensor  # noqa: N815 - uint8
    scale_ON: torch.Tensor  # noqa: N815 - float16
    zero_ON: torch.Tensor | None = None  # noqa: N815 - uint8
    bits: int
    levels: str = "uniform"
    book_K: torch.Tensor | None = None  # noqa: N815 - int8 [2^bits]
    scale_bits: int = 16

    def dequantize(self) -> torch.Tensor:
        """The weights that the engine computes with, float32 [O, I]: one rounding each."""
        if self.zero_ON is None and self.levels == "uniform" and self.bits > 1:
            step_ONG = self.code_ONG.float() - (1 << (self.bits - 1))
        elif self.zero_ON is None:
            book_K = None if self.book_K is None else self.book_K.cpu().numpy()
            level_K = torch.from_numpy(level_values(self.bits, self.levels, book_K)).to(self.code_ONG.device).float()
            step_ONG = level_K[self.code_ONG.int()]
        else:
            step_ONG = self.code_ONG.float() - self.zero_ON.unsqueeze(-1).float()
        return (step_ONG * self.scale_ON.unsqueeze(-1).float()).flatten(1)


def to_groups(weight_OI: torch.Tensor, group_size: int) -> torch.Tensor:
    """[O, N, G], a view where possible. `group_size` must divide I."""
    if weight_OI.shape[1] % group_size:
        raise ValueError(f"group_size {group_size} does not divide {weight_OI.shape[1]} inputs")
    return weight_OI.reshape(len(weight_OI), -1, group_size)


def round_up_to_half(value: torch.Tensor) -> torch.Tensor:
    """The smallest positive float16 that is not below `value` >= 0; infinite if there is none."""
    half = value.half()
    below = half.float() < value
    # positive float16 are ordered as their bits are, so the next one is one more
    return (half.view(torch.int16) + below.to(torch.int16)).clamp(min=1).view(torch.float16)
