"""Learning the codes of a block's matrices together, against what the block puts out in float.

Shapes: W windows, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from penjing.tensors.groups import Quantized
from penjing.tensors.precision import fast_products

#: weights of the block's matrices, and one window's hidden states [T, H], to what comes out [T, H]
Forward = Callable[[Mapping[str, Tensor], Tensor], Tensor]


class Relaxed(Protocol):
    """A matrix whose codes are still soft."""

    def weight(self, part: float) -> Tensor:
        """A differentiable weight; `part` of the steps are done."""
        ...

    def quantized(self) -> Quantized: ...


def learn(
    matrices: Mapping[str, Relaxed],
    forward: Forward,
    input_WTH: Sequence[Tensor],
    target_WTH: Sequence[Tensor],
    *,
    steps: int,
    windows: int,
    update: Callable[[float], None],
    seed: int,
) -> dict[str, Quantized]:
    """Codes after `steps` gradients of the squared error, of `windows` random windows each; `update(part)` applies one.

    Where all of them together are no better on all windows than the codes at the start, those stay.
    """
    start = {name: matrix.quantized() for name, matrix in matrices.items()}
    generator = torch.Generator().manual_seed(seed)
    windows = min(windows, len(input_WTH))
    with fast_products(), torch.enable_grad():
        for step in range(steps):
            part = step / steps
            weights = {name: matrix.weight(part) for name, matrix in matrices.items()}
            leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
            for w in torch.randperm(len(input_WTH), generator=generator)[:windows].tolist():
                error = (forward(leaves, input_WTH[w]) - target_WTH[w]).square().mean() / windows
                error.backward()
            torch.autograd.backward(list(weights.values()), [leaf.grad for leaf in leaves.values()])
            update(part)
    end = {name: matrix.quantized() for name, matrix in matrices.items()}
    before, after = (_error(codes, forward, input_WTH, target_WTH) for codes in (start, end))
    return end if after < before else start


@torch.no_grad()
def _error(
    codes: Mapping[str, Quantized], forward: Forward, input_WTH: Sequence[Tensor], target_WTH: Sequence[Tensor]
) -> float:
    weights = {name: quantized.dequantize() for name, quantized in codes.items()}
    pairs = zip(input_WTH, target_WTH, strict=True)
    return sum(float((forward(weights, x_TH) - y_TH).square().sum()) for x_TH, y_TH in pairs)
