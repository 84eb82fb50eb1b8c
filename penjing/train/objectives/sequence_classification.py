"""Sequence classification: the cross-entropy of every document's class, by a transformers ForSequenceClassification.

With `multi_label` a document has any number of classes, label is their bits (class 0 is bit 0), and each class is a
question of its own. A decoder judges by a document's last token, an encoder by its first.

Shapes: D documents, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from penjing.errors import PenjingError
from penjing.train.batch import NO_LABEL, Batch
from penjing.train.forward import flatten, hidden_states, unwrapped
from penjing.train.objectives import Loss
from penjing.train.objectives.next_sentence import classes
from penjing.train.padded import padded

#: a label's bits must fit an int64
MOST_CLASSES = 63


@dataclass(frozen=True, kw_only=True)
class Objective:
    multi_label: bool = False

    def __call__(self, model: Any, batch: Batch) -> Loss:
        logit_DC, label_D = logits(model, batch), padded(batch).label_D
        if not self.multi_label:
            return classes(logit_DC, label_D)
        known_D = label_D != NO_LABEL
        wanted_DC = bits(label_D[known_D], logit_DC.shape[1])
        # the mean over classes, as transformers takes it
        total = binary_cross_entropy_with_logits(logit_DC[known_D].float(), wanted_DC, reduction="sum")
        return Loss(total / logit_DC.shape[1], float(known_D.sum()))


def logits(model: Any, batch: Batch) -> Tensor:
    """logit_DC. Of decoders the documents stay packed; encoders take them one a row."""
    inner = unwrapped(model)
    head = getattr(inner, "score", None)
    if head is None:
        documents = padded(batch)
        found: Tensor = model(input_ids=documents.token_DT, attention_mask=documents.real_DT).logits
        return found
    flat = flatten(batch)
    last_D = flat.start_D + flat.size_D - 1
    found = head(hidden_states(model, flat)[last_D])
    return found


def bits(label_D: Tensor, num_classes: int) -> Tensor:
    """Which classes, 0.0 or 1.0, a label of bits names."""
    if num_classes > MOST_CLASSES:
        raise PenjingError(f"{num_classes} classes at once", attempt=f"at most {MOST_CLASSES}")
    return ((label_D[:, None] >> torch.arange(num_classes, device=label_D.device)) & 1).float()


def from_bits(classes_of: tuple[int, ...]) -> int:
    """The label that names these classes."""
    return sum(1 << number for number in set(classes_of))
