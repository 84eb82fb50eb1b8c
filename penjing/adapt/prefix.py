"""Prefix tuning: trained keys and values before every text in all layers, from a small network (arXiv:2101.00190)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import PrefixTuningConfig, TaskType

from penjing.adapt import Adapted, Plan
from penjing.adapt._lora import with_adapter


@dataclass(frozen=True, kw_only=True)
class Spec:
    """tokens: how many there are. hidden: width of the network that makes them."""

    tokens: int = 20
    hidden: int = 128


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    config = PrefixTuningConfig(
        num_virtual_tokens=spec.tokens,
        encoder_hidden_size=spec.hidden,
        prefix_projection=True,
        task_type=TaskType.CAUSAL_LM,
    )
    return Adapted(model=with_adapter(model, config, plan))
