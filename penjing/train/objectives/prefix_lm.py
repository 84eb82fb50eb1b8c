"""Prefix language modelling: from a random place on, continue a document; what stands before is only read.

The place depends on the document and the seed alone (the prefix objective of arXiv:1910.10683, section 3.2.1, and of
arXiv:2205.05131, on a causal decoder). Shapes: B rows, T tokens, D documents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from penjing.train.batch import Batch
from penjing.train.objectives import Loss, causal_lm
from penjing.train.objectives.masked_lm import content_seed


@dataclass(frozen=True, kw_only=True)
class Objective:
    """shortest, longest: the prefix, as shares of the document."""

    shortest: float = 0.1
    longest: float = 0.9
    seed: int = 0

    def __call__(self, model: Any, batch: Batch) -> Loss:
        return causal_lm.Objective()(model, prefixed(batch, self))


def prefixed(batch: Batch, settings: Objective) -> Batch:
    """The batch without the weights of prefixes."""
    weight_BT = batch.weight_BT.clone()
    for row in range(len(weight_BT)):
        for document in range(int(batch.document_BT[row].max()) + 1):
            at_N = (batch.document_BT[row] == document).nonzero()[:, 0]
            random = torch.Generator()
            random.manual_seed((settings.seed * 1_000_003 + content_seed(batch.token_BT[row, at_N])) % 2**63)
            share = settings.shortest + (settings.longest - settings.shortest) * float(torch.rand((), generator=random))
            weight_BT[row, at_N[: round(share * len(at_N))]] = 0.0
    return replace(batch, weight_BT=weight_BT)
