"""What was kept apart while a model was adapted: its loss, right answers of classes, margins of preferences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from penjing.measure.answers import right_answers
from penjing.measure.classify import accuracy
from penjing.stages.objectives import PREFERENCES
from penjing.train import precision
from penjing.train.batch import Batch, Document, pack
from penjing.train.loop import held_out_loss
from penjing.train.objectives._answers import answers, by_pairs

if TYPE_CHECKING:
    from penjing.stages.adapt import Examples

_BATCH_TOKENS = 16_384


def validation(examples: Examples, objective: Any, length: int) -> Callable[[Any], float] | None:
    """The held-out loss of a model; None where nothing was kept apart. `length`: most tokens of a document."""
    if not examples.held_out:
        return None
    return held_out_loss(objective, _Batches(examples.held_out, length, examples.group))


def judge(model: Any, examples: Examples, *, kind: str) -> dict[str, Any]:
    """Of a classification `accuracy` among its answers with its 95% interval; of preferences `margin`, by how many nats
    the chosen answer is likelier than the rejected one, on average. `kind`: precision of products."""
    if not examples.held_out:
        return {}
    if examples.objective in PREFERENCES:
        return {"margin": _margin(model, examples.held_out, kind)}
    if not examples.answers:
        return {}
    right_D = right_answers(model, examples.held_out, examples.answers, kind=kind)
    return {"accuracy": accuracy(right_D.astype(int), np.ones(len(right_D), int)).to_json()}


@torch.no_grad()
def _margin(model: Any, held_out: Sequence[Document], kind: str) -> float:
    model.eval()
    total = 0.0
    for batch in _Batches(held_out, max(len(document.token_T) for document in held_out), 2):
        with precision.autocast(kind, "cpu"):
            chosen_P, rejected_P = by_pairs(answers(model, batch)[0])
        total += float((chosen_P - rejected_P).sum())
    return total / (len(held_out) // 2)


@dataclass(frozen=True)
class _Batches:
    """Documents packed as they are asked for, so that no more of them are in memory than a batch has."""

    documents: Sequence[Document]
    length: int  # most tokens of a document
    group: int

    def __iter__(self) -> Iterator[Batch]:
        step = max(8, _BATCH_TOKENS // self.length) // self.group * self.group
        for start in range(0, len(self.documents), step):
            yield pack(self.documents[start : start + step])
