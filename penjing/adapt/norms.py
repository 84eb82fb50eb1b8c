"""Layer-norm tuning: only the weights of the norms are trained (arXiv:2312.11420)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LNTuningConfig, TaskType

from penjing.adapt import Adapted, Plan
from penjing.adapt._lora import with_adapter


@dataclass(frozen=True, kw_only=True)
class Spec:
    """final: also the norm before the head."""

    final: bool = True


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    norms = [name for name in plan.modules if name.endswith("_norm") and (spec.final or name != "final_norm")]
    config = LNTuningConfig(target_modules=[plan.modules[name] for name in norms], task_type=TaskType.CAUSAL_LM)
    return Adapted(model=with_adapter(model, config, plan))
