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
        total = chunked_loss(hidden_NH, head(model), weight_N, cross_entropy(token_N))
        return Loss(total, float(weight_N.sum()))


def cross_entropy(token_N: Tensor) -> ChunkLoss:
    def of_chunk(logit_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        token_C1 = token_N[chunk, None]
        # torch's softmax of bfloat16 is four times as fast as of float32. It sums in float32, and what its result is
        # rounded by, 1 in 512 either way, is less than the logits were
        grad_CV = torch.softmax(logit_CV, 1)
        target_C1 = grad_CV.gather(1, token_C1).float()
        loss_C = -target_C1.clamp_min(torch.finfo(torch.float32).tiny).log()[:, 0]
        return loss_C, grad_CV.scatter_(1, token_C1, (target_C1 - 1).to(grad_CV.dtype))

    return of_chunk
