"""Prompt tuning: trained embeddings stand before every text (arXiv:2104.08691)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PromptTuningConfig, PromptTuningInit, TaskType

from penjing.adapt import Adapted, Plan
from penjing.adapt._lora import with_adapter


@dataclass(frozen=True, kw_only=True)
class Spec:
    """tokens: how many there are."""

    tokens: int = 20


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    config = PromptTuningConfig(
        num_virtual_tokens=spec.tokens, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB, task_type=TaskType.CAUSAL_LM
    )
    return Adapted(model=with_adapter(model, config, plan))
