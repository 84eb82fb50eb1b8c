"""BitFit: only biases are trained (arXiv:2106.10199); matrices that have none get one, which begins at zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from penjing.adapt import Adapted, Plan, chosen_modules, freeze


@dataclass(frozen=True, kw_only=True)
class Spec:
    """norms: also the weights of the norms."""

    norms: bool = False


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    freeze(model)
    for name, place in plan.modules.items():
        model.get_submodule(place).weight.requires_grad_(spec.norms and name.endswith("_norm"))
    for name in chosen_modules(plan, "all"):
        module = model.get_submodule(name)
        if module.bias is None:
            module.bias = nn.Parameter(torch.zeros(module.out_features))
        module.bias.requires_grad_(True)
    return Adapted(model=model, adapter=False)
