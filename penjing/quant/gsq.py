"""Per-level choice for 2 and 3 bits: a Gumbel-softmax over the few levels of each weight, scales learned beside it.

GSQ (arXiv:2604.18556): where a grid has so few levels, each weight can hold a logit for every one of them. A step draws
Gumbel noise, and the weight is the expected level under a softmax whose temperature falls (Gumbel-softmax,
arXiv:1611.01144), so that choices become firm while gradients still reach the other levels. Logits begin at minus the
squared distance to each level in steps. Learned with Adam, block by block against the float output.

Shapes: O outputs, I inputs, N groups a row, G inputs a group, K levels, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penjing.errors import PenjingError
from penjing.tensors.groups import Quantized, to_groups
from penjing.tensors.learning import Forward, learn
from penjing.tensors.scales import search, stored

_FIRM = 8.0  # logits at the start: minus this times the squared distance, in steps
_FIRST_HEAT, _LAST_HEAT = 1.0, 0.1


@dataclass(frozen=True, kw_only=True)
class Spec:
    """bits: 2 or 3. group_size: inputs that share a scale, a divisor of the row.

    steps: of learning. windows: of text in a step. rate: of Adam for logits; that for scales is a hundredth.
    """

    bits: int = 2
    group_size: int = 64
    steps: int = 100
    windows: int = 4
    rate: float = 0.1
    symmetric: ClassVar[bool] = True


def quantize(spec: Spec, weight_OI: Tensor, importance_I: Tensor) -> Quantized:
    """What learning starts from; all there is for matrices outside the blocks."""
    if spec.bits not in (2, 3):
        raise PenjingError(
            f"{spec.bits} bits have too many levels to choose among",
            where="gsq",
            attempt="--set bits=2 or 3; autoround for more",
        )
    return search(weight_OI, importance_I, bits=spec.bits, group_size=spec.group_size, symmetric=True)


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
    generator = torch.Generator().manual_seed(seed)
    matrices = {
        name: _Choosing(spec, weights[name], quantize(spec, weights[name], importances[name]), generator)
        for name, spec in specs.items()
    }
    optimizer = torch.optim.Adam(
        [
            {"params": [matrix.logit_ONGK for matrix in matrices.values()], "lr": first.rate},
            {"params": [matrix.factor_ON for matrix in matrices.values()], "lr": first.rate / 100},
        ]
    )

    def update(part: float) -> None:
        for group, rate in zip(optimizer.param_groups, (first.rate, first.rate / 100), strict=True):
            group["lr"] = rate * (1 - part)
        optimizer.step()
        optimizer.zero_grad()

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


class _Choosing:
    """A matrix with a logit for each level of each weight, and a factor for each scale."""

    def __init__(self, spec: Spec, weight_OI: Tensor, start: Quantized, generator: torch.Generator) -> None:
        self._bits, self._generator = spec.bits, generator
        self._scale_ON = start.scale_ON.float()
        self._level_K = torch.arange(1 << spec.bits, dtype=torch.float32) - (1 << (spec.bits - 1))
        value_ONG = to_groups(weight_OI, spec.group_size) / self._scale_ON.unsqueeze(-1)
        distance_ONGK = value_ONG.unsqueeze(-1) - self._level_K
        self.logit_ONGK = (-_FIRM * distance_ONGK.square()).requires_grad_()
        self.factor_ON = torch.ones_like(self._scale_ON, requires_grad=True)

    def weight(self, part: float) -> Tensor:
        heat = _FIRST_HEAT * (_LAST_HEAT / _FIRST_HEAT) ** part
        noise_ONGK = torch.empty_like(self.logit_ONGK).exponential_(generator=self._generator).log_().neg_()
        share_ONGK = ((self.logit_ONGK + noise_ONGK) / heat).softmax(-1)
        scale_ON1 = (self._scale_ON * self.factor_ON).unsqueeze(-1)
        weight_ONG: Tensor = (share_ONGK @ self._level_K) * scale_ON1
        return weight_ONG.flatten(1)

    @torch.no_grad()
    def quantized(self) -> Quantized:
        return Quantized(
            code_ONG=self.logit_ONGK.argmax(-1).to(torch.uint8),
            scale_ON=stored(self._scale_ON * self.factor_ON).half(),
            bits=self._bits,
        )
