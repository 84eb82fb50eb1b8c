"""Gradient-selected: in every matrix, the weights with the largest gradients are trained, no others (arXiv:2111.09839).

As many as LoRA of that rank has parameters; their changes are kept as a sparse adapter, as in SHiRA (arXiv:2406.13175).
The gradient is the accumulated one of the first batches, squared as in the empirical Fisher information.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import ShiraConfig, TaskType

from penjing.adapt import Adapted, Plan, chosen_modules, freeze
from penjing.adapt._lora import with_adapter
from penjing.errors import PenjingError


@dataclass(frozen=True, kw_only=True)
class Spec:
    """rank: as many weights as LoRA of this rank. parts: of every layer, such as q,v; all: every matrix."""

    rank: int = 16
    parts: str = "all"


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    if plan.gradient is None:
        raise PenjingError("it chooses weights by their gradients", where="gradient", attempt="--data FILE")
    modules = chosen_modules(plan, spec.parts)
    freeze(model)
    weights = {name: model.get_submodule(name).weight for name in modules}
    for weight in weights.values():
        weight.requires_grad_(True)
    plan.gradient(model)
    masks = {id(model.get_submodule(name)): largest(weight.grad, spec.rank) for name, weight in weights.items()}
    model.zero_grad(set_to_none=True)
    config = ShiraConfig(r=spec.rank, target_modules=modules, task_type=TaskType.CAUSAL_LM)
    config.mask_fn = lambda layer, rank, **_: masks[id(layer)]  # a field of its own: it is not saved
    return Adapted(model=with_adapter(model, config, plan))


def largest(gradient_OI: torch.Tensor, rank: int) -> torch.Tensor:
    """1 at the rank · (O + I) largest entries by size, else 0."""
    count = rank * sum(gradient_OI.shape)
    if count > gradient_OI.numel():
        raise PenjingError(
            f"{count} weights of a matrix of {gradient_OI.numel()}", where="rank", attempt="a smaller rank"
        )
    mask = torch.zeros(gradient_OI.numel())
    mask[gradient_OI.abs().flatten().topk(count).indices] = 1.0
    return mask.view_as(gradient_OI)
