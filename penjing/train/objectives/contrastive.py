"""Contrastive pairs: each anchor finds its positive among those of the whole batch (InfoNCE, arXiv:1807.03748).

A group is two documents, anchor and positive, or three with a hard negative (`train.groups.GroupedBatches`). The
embedding is the mean of a document's hidden states; similarity is the cosine, divided by a temperature. Negatives are
those of the piece of a batch that goes through the model at once, so `micro_tokens` decides how many there are.

Shapes: D documents, P pairs, K candidates, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from penjing.errors import PenjingError
from penjing.train.batch import Batch
from penjing.train.forward import flatten, hidden_states
from penjing.train.objectives import Loss


@dataclass(frozen=True, kw_only=True)
class Objective:
    """temperature: of the similarities. group: documents a group, 2 or 3. symmetric: positives look for anchors too."""

    temperature: float = 0.05
    group: int = 2
    symmetric: bool = True

    def __call__(self, model: Any, batch: Batch) -> Loss:
        embedding_DH = embeddings(model, batch)
        if len(embedding_DH) % self.group:
            raise PenjingError(
                f"{len(embedding_DH)} documents are not groups of {self.group}", attempt="train.groups.GroupedBatches"
            )
        anchor_PH, positive_PH, *negatives = (embedding_DH[at :: self.group] for at in range(self.group))
        total = info_nce(anchor_PH, torch.cat([positive_PH, *negatives]), self.temperature)
        if self.symmetric:
            total = (total + info_nce(positive_PH, anchor_PH, self.temperature)) / 2
        return Loss(total, float(len(anchor_PH)))


def embeddings(model: Any, batch: Batch) -> Tensor:
    """Unit vectors, one a document."""
    flat = flatten(batch)
    hidden_NH = hidden_states(model, flat).float()
    document_N = torch.repeat_interleave(torch.arange(len(flat.size_D), device=flat.size_D.device), flat.size_D)
    sum_DH = hidden_NH.new_zeros(len(flat.size_D), hidden_NH.shape[1]).index_add(0, document_N, hidden_NH)
    return normalize(sum_DH / flat.size_D[:, None], dim=1)


def info_nce(query_PH: Tensor, candidate_KH: Tensor, temperature: float) -> Tensor:
    """The sum over queries; the candidate of the same number is the right one."""
    score_PK = query_PH @ candidate_KH.T / temperature
    return cross_entropy(score_PK, torch.arange(len(query_PH), device=query_PH.device), reduction="sum")
