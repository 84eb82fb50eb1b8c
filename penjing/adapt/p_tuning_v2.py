"""P-tuning v2: trained keys and values before every text in all layers, trained directly (arXiv:2110.07602)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PrefixTuningConfig, TaskType

from penjing.adapt import Adapted, Plan
from penjing.adapt._lora import with_adapter


@dataclass(frozen=True, kw_only=True)
class Spec:
    """tokens: how many there are."""

    tokens: int = 20


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    config = PrefixTuningConfig(num_virtual_tokens=spec.tokens, task_type=TaskType.CAUSAL_LM)
    return Adapted(model=with_adapter(model, config, plan))
