"""Token classification: the cross-entropy of the class of every token that has one, as for names or parts of speech.

A document of n tokens and their n classes is packed as 2n tokens: first the tokens, then the classes (+1, 0: none);
`labelled` makes one. So classes travel with any batch. Shapes: D documents, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from penjing.errors import PenjingError
from penjing.train.batch import NO_LABEL, Batch, Tokens
from penjing.train.objectives import Loss
from penjing.train.padded import padded


@dataclass(frozen=True, kw_only=True)
class Objective:
    def __call__(self, model: Any, batch: Batch) -> Loss:
        documents = padded(batch)
        size_D = documents.real_DT.sum(1)
        if bool((size_D % 2).any()):
            raise PenjingError("a document without a class for each token", attempt="token_classification.labelled")
        longest = int(size_D.max()) // 2
        real_DT = documents.real_DT[:, ::2][:, :longest]  # n of 2n
        at_DT = size_D[:, None] // 2 + torch.arange(longest, device=size_D.device)
        at_DT = at_DT.clamp(max=documents.token_DT.shape[1] - 1)
        label_DT = documents.token_DT.gather(1, at_DT) - 1
        label_DT = label_DT.masked_fill(~real_DT | (label_DT < 0), NO_LABEL)
        token_DT = documents.token_DT[:, :longest].masked_fill(~real_DT, 0)
        logit_DTC = model(input_ids=token_DT, attention_mask=real_DT).logits
        total = cross_entropy(logit_DTC.flatten(0, 1).float(), label_DT.flatten(), reduction="sum")
        return Loss(total, float((label_DT != NO_LABEL).sum()))


def labelled(tokens: Sequence[int], labels: Sequence[int | None]) -> Tokens:
    """A document of tokens and the class of each, None for those that have none."""
    if len(tokens) != len(labels):
        raise PenjingError(f"{len(tokens)} tokens with {len(labels)} classes", attempt="one for each, or None")
    both = np.array([*tokens, *(0 if label is None else label + 1 for label in labels)], np.int32)
    return Tokens(both, np.zeros(len(both), np.bool_))
