"""AdaLoRA: P diag(E) Q, whose less important singular values are set to zero on the way to `rank` on average
(arXiv:2303.10512). peft allocates; its averages of importance are kept where a run that goes on finds them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import AdaLoraConfig, TaskType
from torch import Tensor

from penjing.adapt import Adapted, Plan, chosen_modules
from penjing.adapt._lora import with_adapter
from penjing.errors import PenjingError


@dataclass(frozen=True, kw_only=True)
class Spec:
    """first: rank at the beginning. rank: on average in the end. settled: fraction of training after the last choice.
    orthogonal: weight of the penalty that keeps P and Q orthogonal."""

    rank: int = 8
    first: int = 12
    alpha: float = 32.0
    parts: str = "all"
    settled: float = 0.3
    orthogonal: float = 0.1


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    warm, final = plan.steps // 10, int(plan.steps * spec.settled)
    if not 0 < spec.rank < spec.first or warm + final >= plan.steps:
        raise PenjingError(
            f"no way from rank {spec.first} to {spec.rank} in {plan.steps} steps", attempt="first > rank, more steps"
        )
    config = AdaLoraConfig(
        init_r=spec.first,
        target_r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=chosen_modules(plan, spec.parts),
        tinit=warm,
        tfinal=final,
        deltaT=max(1, plan.steps // 50),
        total_step=plan.steps,
        orth_reg_weight=spec.orthogonal,
        task_type=TaskType.CAUSAL_LM,
    )
    wrapped = with_adapter(model, config, plan)
    inner, allocator = wrapped.base_model, wrapped.base_model.rankallocator
    entries = {name: p for name, p in inner.model.named_parameters() if "lora_" in name}
    values = {name: p for name, p in entries.items() if "lora_E" in name}
    kept = {
        f"{kind}.{name}": torch.zeros_like(p) for kind in ("exp_avg_ipt", "exp_avg_unc") for name, p in entries.items()
    }

    def before_step(step: int) -> None:
        if step > plan.steps - final:  # what was set to zero stays so
            config.rank_pattern = {name: (p != 0).view(-1).tolist() for name, p in values.items()}

    def after_step(step: int) -> None:
        for name, p in entries.items():
            allocator.ipt[name] = torch.zeros_like(p)
            for kind in ("exp_avg_ipt", "exp_avg_unc"):
                getattr(allocator, kind)[name] = kept[f"{kind}.{name}"]
        inner.update_and_allocate(step)
        for kind in ("exp_avg_ipt", "exp_avg_unc"):
            for name, tensor in getattr(allocator, kind).items():
                kept[f"{kind}.{name}"].copy_(tensor)

    def penalty() -> Tensor:
        return spec.orthogonal * _distance_from_orthogonal(entries)

    return Adapted(model=wrapped, before_step=before_step, after_step=after_step, penalty=penalty, buffers=kept)


def _distance_from_orthogonal(entries: dict[str, Tensor]) -> Tensor:
    """The mean over all P and Q of ‖PᵀP − I‖."""
    found = []
    for name, p in entries.items():
        if "lora_E" not in name:
            square = p @ p.T if "lora_A" in name else p.T @ p
            found.append(torch.linalg.norm(square - torch.eye(len(square))))
    return torch.stack(found).mean()
