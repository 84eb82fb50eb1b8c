"""Distillation: KL(teacher ‖ student) of the next-token distributions at every target (arXiv:1503.02531).

At temperature t both are softened, and the loss is multiplied by t² so that gradients keep their size. `hard` mixes in
the cross-entropy of the text itself. The teacher's logits are made chunk by chunk like the student's.

Shapes: N tokens, C positions of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from penjing.errors import PenjingError
from penjing.train.batch import Batch
from penjing.train.forward import Head, flatten, head, hidden_states, targets
from penjing.train.objectives import Loss
from penjing.train.objectives.causal_lm import cross_entropy
from penjing.train.vocabulary import ChunkLoss, chunked_loss, logits, product_weight


@dataclass(frozen=True, kw_only=True)
class Objective:
    """teacher: a model with the student's vocabulary, left as it is. hard: weight of the text's own cross-entropy."""

    teacher: Any
    temperature: float = 1.0
    hard: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.hard <= 1:
            raise PenjingError(
                f"no distillation at temperature {self.temperature} with {self.hard} of the text's own loss",
                attempt="a temperature above 0, hard between 0 and 1",
            )

    def __call__(self, model: Any, batch: Batch) -> Loss:
        flat = flatten(batch)
        at_N, token_N, weight_N = targets(flat)
        teacher_head, student_head = head(self.teacher), head(model)
        if len(teacher_head.weight_VH) != len(student_head.weight_VH):
            raise PenjingError(
                f"the teacher has {len(teacher_head.weight_VH)} tokens, the student {len(student_head.weight_VH)}",
                attempt="a teacher with the student's tokenizer",
            )
        with torch.no_grad():
            teacher_NH = hidden_states(self.teacher, flat)[at_N]
        soft = forward_kl(teacher_NH, teacher_head, self.temperature)
        both = mixed(soft, cross_entropy(token_N), self.hard)
        total = chunked_loss(hidden_states(model, flat)[at_N], student_head, weight_N, both)
        return Loss(total, float(weight_N.sum()))


def forward_kl(teacher_NH: Tensor, teacher_head: Head, temperature: float = 1.0) -> ChunkLoss:
    teacher_VH = product_weight(teacher_head)

    def of_chunk(logit_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        wanted_CV = _log_softmax(logits(teacher_NH[chunk], teacher_VH, teacher_head), temperature)
        student_CV = _log_softmax(logit_CV, temperature)
        probability_CV = wanted_CV.exp()
        loss_C = torch.linalg.vecdot(probability_CV, wanted_CV.sub_(student_CV)) * temperature**2
        grad_CV = student_CV.exp_().sub_(probability_CV)
        return loss_C, grad_CV if temperature == 1 else grad_CV.mul_(temperature)

    return of_chunk


def _log_softmax(logit_CV: Tensor, temperature: float) -> Tensor:
    """In float32, whatever the logits are in."""
    if temperature != 1:
        logit_CV = logit_CV.float() / temperature
    return torch.log_softmax(logit_CV, 1, dtype=torch.float32)


def mixed(soft: ChunkLoss, hard: ChunkLoss, share: float) -> ChunkLoss:
    """(1 - share) of one loss and `share` of the other."""
    if share == 0:
        return soft

    def of_chunk(logit_CV: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
        soft_C, soft_CV = soft(logit_CV, chunk)
        hard_C, hard_CV = hard(logit_CV, chunk)
        return soft_C.lerp_(hard_C, share), soft_CV.lerp_(hard_CV.to(soft_CV.dtype), share)

    return of_chunk
