"""Full fine-tuning: every weight is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penjing.adapt import Adapted, Plan


@dataclass(frozen=True, kw_only=True)
class Spec:
    """embeddings: also the embedding, and the head that shares it."""

    embeddings: bool = True


def prepare(spec: Spec, model: Any, plan: Plan) -> Adapted:
    model.requires_grad_(True)
    model.get_input_embeddings().weight.requires_grad_(spec.embeddings)
    return Adapted(model=model, adapter=False)
