"""What training makes smaller, one objective a file: `Objective(...)(model, batch) -> Loss`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """`total` is a sum over what the batch asks for, `count` how much that is: the loop divides by the count of a whole
    step, whatever pieces it was computed in."""

    total: Tensor
    count: float
