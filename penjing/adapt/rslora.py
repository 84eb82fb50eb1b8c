"""rsLoRA: LoRA scaled by alpha / √rank, so that large ranks learn as fast as small ones (arXiv:2312.03732)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penjing.adapt import Adapted, Plan
from penjing.adapt._lora import lora_model


@dataclass(frozen=True, kw_only=True)
class Spec:
    """parts: of every layer, such as q,v; all: every matrix of the layers."""

    rank: int = 16
    alpha: float = 8.0
    dropout: float = 0.0
    parts: str = "all"


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    settings = vars(spec)
    return Adapted(model=lora_model(model, plan, **settings, use_rslora=True))
