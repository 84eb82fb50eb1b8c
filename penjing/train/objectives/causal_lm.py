"""Causal language modelling: the cross-entropy of every target token given those before it in its document.

Shapes: N tokens, C positions of a chunk, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penjing.train.batch import Batch
from penjing.train.forward import flatten, head, hidden_states, targets
from penjing.train.objectives import Loss
from penjing.train.vocabulary import ChunkLoss, chunked_loss


@dataclass(frozen=True, kw_only=True)
class Objective:
    def __call__(self, model: Any, batch: Batch) -> Loss:
        flat = flatten(batch)
        at_N, token_N, weight_N = targets(flat)
        hidden_NH = hidden_states(model, flat)[at_N]
        total = chunked_loss(hidden_NH, head(model), cross_entropy(token_N, weight_N))
        return Loss(total, float(weight_N.sum()))


def cross_entropy(token_N: Tensor, weight_N: Tensor) -> ChunkLoss:
    def of_chunk(logit_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        token_C1, weight_C1 = token_N[chunk, None], weight_N[chunk, None]
        target_C1 = logit_CV.gather(1, token_C1)
        normalizer_C1 = torch.logsumexp(logit_CV, 1, keepdim=True)
        loss = ((normalizer_C1 - target_C1) * weight_C1).sum()
        # softmax - 1 at the target, in place of the logits
        grad_CV = logit_CV.sub_(normalizer_C1).exp_().mul_(weight_C1)
        return loss, grad_CV.scatter_add_(1, token_C1, -weight_C1)

    return of_chunk
