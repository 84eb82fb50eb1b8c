"""Quantized matrices: each row in groups of consecutive inputs that share a scale and a zero point.

Shapes: O outputs, I inputs, N groups a row, G inputs a group. weight = (code - zero) * scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False, kw_only=True)
class Quantized:
    """Codes are unsigned. Without `zero_ON` (symmetric) the zero point is 2^(bits-1) everywhere."""

    code_ONG: torch.Tensor  # noqa: N815 - uint8
    scale_ON: torch.Tensor  # noqa: N815 - float16
    zero_ON: torch.Tensor | None  # noqa: N815 - uint8
    bits: int

    def dequantize(self) -> torch.Tensor:
        """The weights that the engine computes with, float32 [O, I]: one rounding each."""
        zero = 1 << (self.bits - 1) if self.zero_ON is None else self.zero_ON.unsqueeze(-1).float()
        return ((self.code_ONG.float() - zero) * self.scale_ON.unsqueeze(-1).float()).flatten(1)


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
