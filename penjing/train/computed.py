"""Modules whose weight is computed anew in every forward pass, from whatever is trained instead of it.

The module keeps its class, in a subclass whose `weight` is a property, so that transformers and the losses (which read
the head's weight) see a layer as they know it. A weight that several modules share is computed once a pass.

Shapes: whatever the weight has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Computed(nn.Module):
    """What stands in for a weight: the parts of its rows. It is computed once, until its graph was used up by a
    backward pass or what is trained has changed."""

    def __init__(self, parts: Iterable[nn.Module], join: Callable[[list[Tensor]], Tensor] | None = None) -> None:
        """`join` puts the weights of several parts together; one part is the whole weight."""
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._join = join
        self._known: tuple[Any, Tensor] | None = None

    def weight(self) -> Tensor:
        state = (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), *(p._version for p in self.parameters()))
        if self._known is None or self._known[0] != state:
            made = [part() for part in self.parts]
            weight = made[0] if self._join is None else self._join(made)
            if weight.requires_grad:
                weight.register_hook(self._used_up)
            self._known = state, weight
        return self._known[1]

    def _used_up(self, gradient: Tensor) -> None:
        self._known = None


class Gain(nn.Module):
    """A vector that changes by fractions of its mean size."""

    def __init__(self, start: Tensor, rate: float) -> None:
        super().__init__()
        self._start = start.detach().clone()
        size = float(self._start.abs().mean())
        self._rate = rate * (size if size > 0 else 1.0)
        self.change = nn.Parameter(torch.zeros_like(self._start))

    def forward(self) -> Tensor:
        return self._start + self._rate * self.change


def compute(module: nn.Module, computed: Computed) -> None:
    """Let `module` take its weight from `computed`, its own parameter gone."""
    del module._parameters["weight"]
    kind = type(module)
    module.computed = computed
    module.__class__ = type(kind.__name__, (kind,), {"weight": property(lambda self: self.computed.weight())})
    if isinstance(module, nn.Embedding):  # what follows adds to these: not in the precision of products
        module.register_forward_hook(_in_float32)


def _in_float32(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()
