"""Direct preference optimization: the chosen answer gains more over a reference than the rejected one does.

-log sigmoid(beta * ((chosen - reference's) - (rejected - reference's))) of log-probabilities of whole answers
(arXiv:2305.18290, equation 7), smoothed for labels that may be wrong (conservative DPO, its appendix).

Shapes: D documents, P pairs of a chosen and a rejected answer.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from penjing.errors import PenjingError
from penjing.train.batch import Batch
from penjing.train.objectives import Loss
from penjing.train.objectives._answers import answers, by_pairs


@dataclass(frozen=True, kw_only=True)
class Objective:
    """reference: the model before, or None: the trained one without its adapter (peft).

    smoothing: share of labels that may be wrong.
    """

    reference: Any = None
    beta: float = 0.1
    smoothing: float = 0.0

    def __call__(self, model: Any, batch: Batch) -> Loss:
        chosen_P, rejected_P = by_pairs(answers(model, batch)[0])
        with torch.no_grad(), self._without_adapter(model):
            was_training = model.training
            before = self.reference if self.reference is not None else model.eval()
            chosen_before_P, rejected_before_P = by_pairs(answers(before, batch)[0])
            model.train(was_training)
        margin_P = self.beta * ((chosen_P - chosen_before_P) - (rejected_P - rejected_before_P))
        loss_P = -(1 - self.smoothing) * logsigmoid(margin_P) - self.smoothing * logsigmoid(-margin_P)
        return Loss(loss_P.sum(), float(len(loss_P)))

    def _without_adapter(self, model: Any) -> Any:
        if self.reference is not None:
            return nullcontext()
        if not hasattr(model, "disable_adapter"):
            raise PenjingError("no reference to compare with", where="dpo", attempt="the model before, or an adapter")
        return model.disable_adapter()
