"""What was kept apart while a model was adapted: its loss, and how many of its answers are right."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from penjing.measure.answers import Answer, right_answers
from penjing.measure.classify import accuracy
from penjing.train.batch import Document, pack
from penjing.train.loop import held_out_loss
from penjing.train.objectives import causal_lm

_BATCH_TOKENS = 16_384


def validation(held_out: Sequence[Document], length: int) -> Callable[[Any], float] | None:
    """The held-out loss of a model; None where nothing was kept apart. `length`: most tokens of a document."""
    if not held_out:
        return None
    step = max(8, _BATCH_TOKENS // length)
    groups = [held_out[start : start + step] for start in range(0, len(held_out), step)]
    return held_out_loss(causal_lm.Objective(), [pack(group) for group in groups])


def judge(model: Any, held_out: Sequence[Document], answers: Collection[Answer], *, kind: str) -> dict[str, Any]:
    """Accuracy among `answers`, with its 95% interval; nothing where there are none. `kind`: precision of products."""
    if not held_out or not answers:
        return {}
    right_D = right_answers(model, held_out, answers, kind=kind)
    return {"accuracy": accuracy(right_D.astype(int), np.ones(len(right_D), int)).to_json()}
