"""What LoRA and its relatives share."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model

from penjing.adapt import Plan, chosen_modules


def lora_model(
    model: Any,
    plan: Plan,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    parts: str,
    name: str = "default",
    **own: Any,
) -> Any:
    """`model` with LoRA in the matrices `parts` of every layer. `own`: what a relative sets besides."""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # peft divides it, so it may be any number
        lora_dropout=dropout,
        target_modules=chosen_modules(plan, parts),
        task_type=TaskType.CAUSAL_LM,
        **own,
    )
    return with_adapter(model, config, plan, name)


def with_adapter(model: Any, config: Any, plan: Plan, name: str = "default") -> Any:
    """peft's model; what it draws at random follows from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return get_peft_model(model, config, adapter_name=name)
