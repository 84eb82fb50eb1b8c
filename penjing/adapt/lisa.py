"""LISA: all layers take turns, a few at a time are trained, so that most need no gradients (arXiv:2403.17919).

The paper draws layers at random; here a seeded order is gone through again and again, so that none is left out unless
training ends before its first turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from penjing.adapt import Adapted, Plan


@dataclass(frozen=True, kw_only=True)
class Spec:
    """active: layers at a time. every: steps until others take their turn. top: also embedding, last norm and head,
    all the time, as in the paper."""

    active: int = 4
    every: int = 10
    top: bool = False


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    model.requires_grad_(spec.top)
    layers = list(model.base_model.layers)
    for layer in layers:
        layer.requires_grad_(True)

    def before_step(step: int) -> None:
        active = active_layers(spec, len(layers), step, plan.seed)
        for number, layer in enumerate(layers):
            layer.requires_grad_(number in active)

    def finish() -> None:
        for layer in layers:
            layer.requires_grad_(True)

    return Adapted(model=model, adapter=False, before_step=before_step, finish=finish)


def active_layers(spec: Spec, num_layers: int, step: int, seed: int) -> set[int]:
    """A function of the step alone, so that a run that goes on trains what the first one would have."""
    turn = step // spec.every
    count = min(spec.active, num_layers)
    turns = -(-num_layers // count)
    order = np.random.default_rng((seed, turn // turns)).permutation(num_layers)
    first = (turn % turns) * count
    return {int(number) for number in order[first : first + count]}
