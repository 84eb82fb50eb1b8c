"""Next-sentence prediction: does the second part of a pair follow the first (BERT, arXiv:1810.04805, section 3.1)?

Class 0: it does, 1: it does not. Shapes: D documents, T tokens, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from penjing.train.batch import NO_LABEL, Batch
from penjing.train.objectives import Loss
from penjing.train.padded import padded


@dataclass(frozen=True, kw_only=True)
class Objective:
    """separator: the id of the token that ends each part."""

    separator: int

    def __call__(self, model: Any, batch: Batch) -> Loss:
        documents = padded(batch)
        kind_DT = parts(documents.token_DT, self.separator)
        logit_DC = model(input_ids=documents.token_DT, attention_mask=documents.real_DT, token_type_ids=kind_DT).logits
        return classes(logit_DC, documents.label_D)


def parts(token_DT: Tensor, separator: int) -> Tensor:
    """0 up to the first separator, 1 after it."""
    ended_DT = (token_DT == separator).cumsum(1)
    return ((ended_DT - (token_DT == separator).long()) > 0).long()


def classes(logit_DC: Tensor, label_D: Tensor) -> Loss:
    total = cross_entropy(logit_DC.float(), label_D, ignore_index=NO_LABEL, reduction="sum")
    return Loss(total, float((label_D != NO_LABEL).sum()))
