"""Quantization-aware training: codes themselves learn, through latent weights that are rounded in every forward pass.

Any levels: 2 to 8 bits, ternary, binary, codebooks. Latents begin in the cells of the codes that the child has, so
training starts from what GPTQ (or whoever made the child) has found. Step sizes are learned
along (LSQ, arXiv:1902.08153), as are the norms; the objective is the float parent's KL, as in LLM-QAT
(arXiv:2305.17888). What is learned, and in which units: `tensors/fake_quantize.py`.

Shapes: O outputs, I inputs, N groups a row, G inputs a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from penjing.format.pack import Layout
from penjing.tensors.fake_quantize import Grid, relative, rounded_scale, rounded_weight, values
from penjing.tensors.groups import Quantized, to_groups


@dataclass(frozen=True, kw_only=True)
class Spec:
    """learning_rate: of Adam, in steps of a grid; where none is given, this at a nat from the parent (`stages.tune`).

    scale_rate: the rate of scales and norms as a fraction of it.
    start: where in its cell a latent begins, from 0, the middle, to 1, the parent's weight or what is nearest to it.
    From there the first steps undo codes that are not the nearest, which is what GPTQ has chosen them for.
    """

    learning_rate: float = 2.2e-3
    scale_rate: float = 1.0
    start: float = 0.0


class Weight(nn.Module):
    """A matrix of latents. `forward` is the weight [O, I] that their rounding gives."""

    def __init__(self, spec: Spec, quantized: Quantized, weight_OI: Tensor) -> None:
        super().__init__()
        self._grid, self._scale_rate, self._scale_bits = Grid(quantized), spec.scale_rate, quantized.scale_bits
        self._scale_ON = quantized.scale_ON.float()
        value_ONG = values(quantized)
        group_size = value_ONG.shape[-1]
        parent_ONG = to_groups(weight_OI, group_size) / (self._grid.unit * self._scale_ON).unsqueeze(-1)
        inside_ONG = self._grid.inside(parent_ONG, value_ONG)
        self.latent_ONG = nn.Parameter(torch.lerp(value_ONG / self._grid.unit, inside_ONG, spec.start))
        self.change_ON = nn.Parameter(torch.zeros(self._scale_ON.shape))

    def forward(self) -> Tensor:
        return rounded_weight(self.latent_ONG, rounded_scale(self._scale(), self._scale_bits), self._grid)

    def confine_(self) -> None:
        """Before a step."""
        self._grid.confine_(self.latent_ONG.data)

    def quantized(self) -> Quantized:
        """As it is stored."""
        return self._grid.quantized(self.latent_ONG.data, self._scale())

    def _scale(self) -> Tensor:
        return relative(self._scale_ON, self.change_ON, self._scale_rate)


def tunable(spec: Spec, quantized: Quantized, weight_OI: Tensor) -> Weight:
    """The child's matrix as something to train, beginning between its own codes and the parent's weights."""
    return Weight(spec, quantized, weight_OI)


def vector_rate(spec: Spec) -> float:
    """Norms change as scales do."""
    return spec.scale_rate


def num_trained(layout: Layout) -> int:
    """Latents and scales."""
    return layout.rows * (layout.cols + layout.num_groups)
