"""Attention only: the matrices of the attention are trained, the MLPs are not (arXiv:2203.09795)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penjing.adapt import Adapted, Plan, chosen_modules, freeze


@dataclass(frozen=True, kw_only=True)
class Spec:
    """parts: which matrices of the attention."""

    parts: str = "q,k,v,o"


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    freeze(model)
    for module in chosen_modules(plan, spec.parts):
        model.get_submodule(module).requires_grad_(True)
    return Adapted(model=model, adapter=False)
