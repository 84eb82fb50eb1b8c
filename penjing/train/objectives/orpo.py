"""Odds ratio preference optimization: learn the chosen answer, and its odds against the rejected one; no reference.

The chosen answer's mean cross-entropy - weight * log sigmoid(log odds ratio), with odds p / (1 - p) of p, the geometric
mean of an answer's token probabilities (arXiv:2403.07691, equations 4 to 7).

Shapes: D documents, P pairs of a chosen and a rejected answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from penjing.train.batch import Batch
from penjing.train.objectives import Loss
from penjing.train.objectives._answers import answers, by_pairs


@dataclass(frozen=True, kw_only=True)
class Objective:
    """weight: of the odds ratio, lambda in the paper."""

    weight: float = 0.1

    def __call__(self, model: Any, batch: Batch) -> Loss:
        logp_D, size_D = answers(model, batch)
        chosen_P, rejected_P = by_pairs(logp_D / size_D.clamp(min=1))
        ratio_P = _log_odds(chosen_P) - _log_odds(rejected_P)
        loss_P = -chosen_P - self.weight * logsigmoid(ratio_P)
        return Loss(loss_P.sum(), float(len(loss_P)))


def _log_odds(logp_P: Tensor) -> Tensor:
    """log(p / (1 - p)); a probability that rounds to 1 would have infinite odds."""
    logp_P = logp_P.clamp(max=-torch.finfo(torch.float32).eps)
    return logp_P - torch.log(-torch.expm1(logp_P))
