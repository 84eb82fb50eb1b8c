"""Multi-task LoRA: a part that all tasks share and a part of each task's own, trained in turns (cf. arXiv:2410.09437).

W + B A (shared) + Bₜ Aₜ (of task t). Step s belongs to task s mod the number of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, TaskType

from penjing.adapt import Adapted, Plan, chosen_modules
from penjing.adapt._lora import lora_model
from penjing.errors import PenjingError

SHARED = "shared"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """rank: of the shared part. own: of each task's. scale: what every B A is multiplied by."""

    rank: int = 16
    own: int = 8
    scale: float = 2.0
    parts: str = "all"


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    if len(set(plan.tasks)) < 2 or SHARED in plan.tasks:
        raise PenjingError("it needs two tasks or more", where="multitask", attempt="--data once for each task")
    wrapped = lora_model(
        model, plan, rank=spec.rank, alpha=spec.scale * spec.rank, dropout=0.0, parts=spec.parts, name=SHARED
    )
    modules = chosen_modules(plan, spec.parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed + 1)
        for task in plan.tasks:
            own = LoraConfig(
                r=spec.own,
                lora_alpha=spec.scale * spec.own,
                target_modules=modules,
                task_type=TaskType.CAUSAL_LM,
            )
            wrapped.add_adapter(task, own)
    everything = [SHARED, *plan.tasks]

    def before_step(step: int) -> None:
        wrapped.base_model.set_adapter([SHARED, plan.tasks[step % len(plan.tasks)]])

    def finish() -> None:
        """Every task's adapter becomes the sum of both parts, exactly, with their ranks added."""
        for task in plan.tasks:
            wrapped.add_weighted_adapter([SHARED, task], [1.0, 1.0], f"{task}_whole", combination_type="cat")
        wrapped.base_model.set_adapter([SHARED, plan.tasks[0]])

    wrapped.base_model.set_adapter(everything)  # all of them are trained
    return Adapted(model=wrapped, before_step=before_step, finish=finish)
