"""BERT's pretraining: masked language modelling and next-sentence prediction together (arXiv:1810.04805, section 3.1).

Their means are added, as transformers' BertForPreTraining does. Shapes: D documents, T tokens, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penjing.train.batch import Batch
from penjing.train.objectives import Loss, masked_lm, next_sentence
from penjing.train.padded import padded


@dataclass(frozen=True, kw_only=True)
class Objective:
    """See `masked_lm` and `next_sentence`."""

    mask: int
    separator: int
    num_special: int = 0
    share: float = 0.15
    seed: int = 0

    def __call__(self, model: Any, batch: Batch) -> Loss:
        out, token_DT, chosen_DT, label_D = _seen(self, model, batch)
        words = masked_lm.guesses(out.prediction_logits, token_DT, chosen_DT)
        order = next_sentence.classes(out.seq_relationship_logits, label_D)
        means = words.total / max(1.0, words.count) + order.total / max(1.0, order.count)
        return Loss(means * len(label_D), float(len(label_D)))


def accuracies(objective: Objective, model: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """Shares of masked tokens and of orders that were told right."""
    right: dict[str, float] = {"masked": 0.0, "order": 0.0}
    counts = dict(right)
    model.eval()
    with torch.no_grad():
        for batch in batches:
            out, token_DT, chosen_DT, label_D = _seen(objective, model, batch)
            right["masked"] += float((out.prediction_logits.argmax(-1) == token_DT)[chosen_DT].sum())
            right["order"] += float((out.seq_relationship_logits.argmax(-1) == label_D).sum())
            counts["masked"] += float(chosen_DT.sum())
            counts["order"] += len(label_D)
    return {f"{name}_accuracy": found / max(1.0, counts[name]) for name, found in right.items()}


def _seen(objective: Objective, model: Any, batch: Batch) -> tuple[Any, Tensor, Tensor, Tensor]:
    documents = padded(batch)
    words = masked_lm.Objective(
        mask=objective.mask, num_special=objective.num_special, share=objective.share, seed=objective.seed
    )
    token_DT, chosen_DT = masked_lm.masked(documents, words, model.config.vocab_size)
    out = model(
        input_ids=token_DT,
        attention_mask=documents.real_DT,
        token_type_ids=next_sentence.parts(documents.token_DT, objective.separator),
    )
    return out, documents.token_DT, chosen_DT, documents.label_D
