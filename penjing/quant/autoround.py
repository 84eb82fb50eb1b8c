"""Learned rounding, block by block: offsets to rounding and the clip of each group, by the sign of gradients.

AutoRound (arXiv:2309.05516): weight = scale * clamp(round(w / scale + offset)), offset within half a step, and a factor
on each group's scale, both learned with signSGD against the float output of the block, for a few hundred steps, with a
rate that falls to zero. Rounding passes gradients straight through. To learn which way to round is AdaRound's idea
(arXiv:2004.10568). The start is the searched scale (`tensors.scales`); inputs are those that come out of the quantized
blocks before, targets those of the float model.

Shapes: O outputs, I inputs, N groups a row, G inputs a group, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.tensors.groups import Quantized, to_groups
from penjing.tensors.learning import Forward, learn
from penjing.tensors.scales import search, stored

_CLIP = 0.5  # a scale's factor is 1 within this


@dataclass(frozen=True, kw_only=True)
class Spec:
    """bits: 2, 3, 4, 5, 6 or 8. group_size: inputs that share a scale, a divisor of the row.

    steps: of learning. windows: of text in a step. rate: of the first step, in steps of the grid; 0: 1 / steps.
    """

    bits: int = 4
    group_size: int = 64
    symmetric: bool = True
    steps: int = 200
    windows: int = 4
    rate: float = 0.0


def quantize(spec: Spec, weight_OI: Tensor, importance_I: Tensor) -> Quantized:
    """What learning starts from; all there is for matrices outside the blocks."""
    return search(weight_OI, importance_I, bits=spec.bits, group_size=spec.group_size, symmetric=spec.symmetric)


def quantize_block(
    specs: Mapping[str, Spec],
    weights: Mapping[str, Tensor],
    importances: Mapping[str, Tensor],
    forward: Forward,
    input_WTH: Sequence[Tensor],
    target_WTH: Sequence[Tensor],
    seed: int,
) -> dict[str, Quantized]:
    """Quantize matrices of one block together. `importances`: of each matrix's inputs, for the start."""
    first = next(iter(specs.values()))
    matrices = {
        name: _Rounding(spec, weights[name], quantize(spec, weights[name], importances[name]))
        for name, spec in specs.items()
    }
    rate = first.rate or 1 / first.steps

    def update(part: float) -> None:
        for matrix in matrices.values():
            matrix.step(rate * (1 - part))

    return learn(
        matrices,
        forward,
        input_WTH,
        target_WTH,
        steps=first.steps,
        windows=first.windows,
        update=update,
        seed=seed,
    )


class _Rounding:
    """A matrix with an offset for each weight and a factor for each scale."""

    def __init__(self, spec: Spec, weight_OI: Tensor, start: Quantized) -> None:
        self._spec, self._start = spec, start
        self._weight_ONG = to_groups(weight_OI, spec.group_size)
        self._scale_ON = start.scale_ON.float()
        zero_ON1 = 1 << (spec.bits - 1) if start.zero_ON is None else start.zero_ON.float().unsqueeze(-1)
        self._zero_ON1 = zero_ON1 * torch.ones_like(self._scale_ON).unsqueeze(-1)
        self._offset_ONG = torch.zeros_like(self._weight_ONG, requires_grad=True)
        self._factor_ON = torch.ones_like(self._scale_ON, requires_grad=True)

    def weight(self, part: float) -> Tensor:
        scale_ON = self._scale_ON * self._factor_ON
        scale_ON = scale_ON + (stored(scale_ON) - scale_ON).detach()
        step_ONG = self._steps(scale_ON)
        return (step_ONG * scale_ON.unsqueeze(-1)).flatten(1)

    def _steps(self, scale_ON: Tensor) -> Tensor:
        value_ONG = self._weight_ONG / scale_ON.unsqueeze(-1) + self._offset_ONG
        rounded_ONG = value_ONG + (value_ONG.round() - value_ONG).detach()
        most = (1 << self._spec.bits) - 1
        return rounded_ONG.clamp(-self._zero_ON1, most - self._zero_ON1)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Against the sign of the gradient."""
        for parameter, centre in ((self._offset_ONG, 0.0), (self._factor_ON, 1.0)):
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad.sign()).clamp_(centre - _CLIP, centre + _CLIP)
                parameter.grad = None

    @torch.no_grad()
    def quantized(self) -> Quantized:
        scale_ON = stored(self._scale_ON * self._factor_ON)
        code_ONG = self._steps(scale_ON) + self._zero_ON1
        return Quantized(
            code_ONG=code_ONG.round().to(torch.uint8),
            scale_ON=scale_ON.half(),
            zero_ON=self._start.zero_ON,
            bits=self._spec.bits,
        )
