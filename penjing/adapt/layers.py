"""Layer-wise: some layers are trained whole, the rest is not; backward stops at the lowest (arXiv:1911.03090)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penjing.adapt import Adapted, Plan, freeze
from penjing.errors import PenjingError


@dataclass(frozen=True, kw_only=True)
class Spec:
    """chosen: numbers from 0, negative ones from the end, such as -1,-2,-3,-4."""

    chosen: str = "-1,-2,-3,-4"


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    freeze(model)
    layers = model.base_model.layers
    try:
        numbers = [int(number) for number in str(spec.chosen).split(",")]
        picked = [layers[number] for number in numbers]
    except (ValueError, IndexError) as error:
        raise PenjingError(
            f"no layers {spec.chosen!r}", where="chosen", attempt=f"numbers from {-len(layers)} to {len(layers) - 1}"
        ) from error
    for layer in picked:
        layer.requires_grad_(True)
    return Adapted(model=model, adapter=False)
