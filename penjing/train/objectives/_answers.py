"""Log-probabilities of whole answers, for objectives of preferences.

Shapes: N tokens to predict, C of a chunk, D documents, P pairs, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from penjing.errors import PenjingError
from penjing.train.batch import Batch
from penjing.train.forward import Head, flatten, head, hidden_states, targets
from penjing.train.vocabulary import chunks


def answers(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """(logp_D, size_D): the sum over a document's targets, and how many these are.

    Logits are made chunk by chunk, once more in the backward pass, and never held.
    """
    flat = flatten(batch)
    at_N, token_N, _ = targets(flat)
    hidden_NH, top = hidden_states(model, flat)[at_N], head(model)
    pieces = [
        checkpoint(_log_probability, hidden_NH[chunk], token_N[chunk], top, use_reentrant=False)
        for chunk in chunks(len(token_N), len(top.weight_VH), torch.float32)
    ]
    document_N = torch.bucketize(at_N + 1, flat.start_D, right=True) - 1
    zero_D = torch.zeros(len(flat.start_D), device=hidden_NH.device)
    logp_D = zero_D.index_add(0, document_N, torch.cat(pieces)) if pieces else zero_D
    return logp_D, zero_D.index_add(0, document_N, torch.ones_like(document_N, dtype=zero_D.dtype))


def _log_probability(hidden_CH: Tensor, token_C: Tensor, top: Head) -> Tensor:
    logit_CV = torch.nn.functional.linear(hidden_CH, top.weight_VH.to(hidden_CH.dtype), None).float()
    if top.bias_V is not None:
        logit_CV = logit_CV + top.bias_V
    logit_CV = logit_CV * top.scale
    if top.softcap is not None:
        logit_CV = top.softcap * torch.tanh(logit_CV / top.softcap)
    return logit_CV.gather(1, token_C[:, None])[:, 0] - torch.logsumexp(logit_CV, 1)


def by_pairs(value_D: Tensor) -> tuple[Tensor, Tensor]:
    """(chosen_P, rejected_P): documents come in pairs, see `train.groups.GroupedBatches`."""
    if len(value_D) % 2:
        raise PenjingError(f"{len(value_D)} documents are not pairs", attempt="train.groups.GroupedBatches")
    return value_D[0::2], value_D[1::2]
