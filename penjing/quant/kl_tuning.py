"""Tuning of scales by the teacher's KL: codes stay, scales, zero points and norms learn to make up for them.

The float parent predicts a text, and what surrounds the codes is trained until the quantized child predicts the same:
the distilled weight quantization of mlx-lm (its DWQ), and the second phase of EfficientQAT (arXiv:2407.11062). A change
of a scale is counted in fractions of it, so one learning rate fits all.

Shapes: O outputs, I inputs, N groups a row, G inputs a group.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from penjing.format.pack import Layout
from penjing.tensors.fake_quantize import relative, rounded_scale, scaled_weight, values
from penjing.tensors.groups import Quantized
from penjing.tensors.scales import stored


@dataclass(frozen=True, kw_only=True)
class Spec:
    """learning_rate: of Adam, as a fraction of a scale a step; where none is given, this at a nat from the parent.

    zero_rate: steps of a zero point for all of a scale.
    """

    learning_rate: float = 1e-3
    zero_rate: float = 10.0


class Weight(nn.Module):
    """A matrix whose codes are frozen. `forward` is the weight [O, I]."""

    def __init__(self, spec: Spec, quantized: Quantized) -> None:
        super().__init__()
        self._like, self._zero_rate = quantized, spec.zero_rate
        scale_ON = quantized.scale_ON.float()
        self.scale_ON = scale_ON  # no buffer: what it began with is not part of what is learnt
        self.change_ON = nn.Parameter(torch.zeros(scale_ON.shape))
        if quantized.zero_ON is None:
            self._value_ONG = values(quantized).to(torch.int8)
            self.shift_ON: nn.Parameter | None = None
        else:
            self._value_ONG = quantized.code_ONG
            self.shift_ON = nn.Parameter(torch.zeros(scale_ON.shape))

    def forward(self) -> Tensor:
        return scaled_weight(self._value_ONG, rounded_scale(self._scale(), self._like.scale_bits), self._zero())

    def confine_(self) -> None:
        """Scales and zero points may go where they like: what stores them rounds and clamps."""

    def quantized(self) -> Quantized:
        """As it is stored."""
        zero_ON = self._zero()
        return dataclasses.replace(
            self._like,
            scale_ON=stored(self._scale().detach(), self._like.scale_bits).half(),
            zero_ON=None if zero_ON is None else zero_ON.detach().to(torch.uint8),
        )

    def _scale(self) -> Tensor:
        return relative(self.scale_ON, self.change_ON, 1.0)

    def _zero(self) -> Tensor | None:
        """Whole numbers, the gradient straight through."""
        if self.shift_ON is None or self._like.zero_ON is None:
            return None
        wanted_ON = self._like.zero_ON.float() + self._zero_rate * self.shift_ON
        found_ON = wanted_ON.detach().round().clamp(0, (1 << self._like.bits) - 1)
        return wanted_ON + (found_ON - wanted_ON.detach())


def tunable(spec: Spec, quantized: Quantized, weight_OI: Tensor) -> Weight:
    """The child's matrix as something to train; what the parent's weights are does not matter."""
    return Weight(spec, quantized)


def vector_rate(spec: Spec) -> float:
    """Norms change as scales do."""
    return 1.0


def num_trained(layout: Layout) -> int:
    """Scales, and zero points where there are any."""
    return layout.rows * layout.num_groups * (1 if layout.symmetric else 2)
