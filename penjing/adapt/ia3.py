"""(IA)³: keys, values and what goes into the MLP's last matrix are multiplied by trained vectors (arXiv:2205.05638)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import IA3Config, TaskType

from penjing.adapt import Adapted, Plan, chosen_modules
from penjing.adapt._lora import with_adapter


@dataclass(frozen=True, kw_only=True)
class Spec:
    """outputs: parts whose outputs are multiplied; inputs: those whose inputs are."""

    outputs: str = "k,v"
    inputs: str = "down"


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    inputs = chosen_modules(plan, spec.inputs)
    config = IA3Config(
        target_modules=[*chosen_modules(plan, spec.outputs), *inputs],
        feedforward_modules=inputs,
        task_type=TaskType.CAUSAL_LM,
    )
    return Adapted(model=with_adapter(model, config, plan))
