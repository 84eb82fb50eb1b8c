"""DoRA: the direction of a weight changes as in LoRA, its columns' lengths are trained apart (arXiv:2402.09353)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penjing.adapt import Adapted, Plan
from penjing.adapt._lora import lora_model


@dataclass(frozen=True, kw_only=True)
class Spec:
    """parts: of every layer, such as q,v; all: every matrix of the layers."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    parts: str = "all"


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    settings = vars(spec)
    return Adapted(model=lora_model(model, plan, **settings, use_dora=True))
