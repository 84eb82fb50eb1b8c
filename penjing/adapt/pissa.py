"""PiSSA: LoRA that begins as the largest singular vectors of the weight, the rest is frozen (arXiv:2404.02948).

When training is over the change is written as plain LoRA of twice the rank beside the untouched base,
B A - B₀ A₀ = [B, -B₀] [A; A₀], so that the adapter opens with the base model as any other.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penjing.adapt import Adapted, Plan
from penjing.adapt._lora import lora_model


@dataclass(frozen=True, kw_only=True)
class Spec:
    """parts: of every layer, such as q,v; all: every matrix of the layers."""

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    parts: str = "all"


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    wrapped = lora_model(model, plan, **vars(spec), init_lora_weights="pissa")
    layers = {name: module for name, module in wrapped.named_modules() if hasattr(module, "lora_A")}
    first = {
        name: (layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone())
        for name, layer in layers.items()
    }

    def finish() -> None:
        for name, layer in layers.items():
            _as_lora(layer, *first[name])
        config = copy.copy(wrapped.peft_config["default"])
        config.r, config.lora_alpha, config.init_lora_weights = 2 * spec.rank, 2 * spec.alpha, True
        wrapped.peft_config["default"] = wrapped.base_model.peft_config["default"] = config

    return Adapted(model=wrapped, finish=finish)


@torch.no_grad()
def _as_lora(layer: Any, first_RI: Tensor, first_OR: Tensor) -> None:
    """The layer as LoRA of twice the rank and the same scale, its weight as it was before PiSSA took its part."""
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    layer.get_base_layer().weight += layer.scaling["default"] * (first_OR @ first_RI)
    a.weight = torch.nn.Parameter(torch.cat([a.weight, first_RI]))
    b.weight = torch.nn.Parameter(torch.cat([b.weight, -first_OR], dim=1))
    a.out_features = b.in_features = layer.r["default"] = len(a.weight)
