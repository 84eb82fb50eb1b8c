"""Classification by a language model: each class answers with one token, and the most probable one is the class.

A class's token is taken from the words of its own name (a verbalizer, arXiv:2001.07676), so the model knows something
about it before it is trained; no head is added, so the file that ships is a decoder as any other and an answer takes
one step. Judged here: accuracy with Wilson's interval, macro-F1 with a bootstrap interval.

Shapes: N documents, C classes, T tokens of a document, H hidden size, B bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penjing.errors import PenjingError
from penjing.train import precision
from penjing.train.batch import document, pack
from penjing.train.forward import Head, flatten, head, hidden_states

#: what names that share all their words answer with
_SPARE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_Z95 = 1.959964
_BATCH_TOKENS = 4096

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Interval:
    """A fraction and its 95% interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def answer_tokens(encode: Encode, labels: Sequence[str]) -> list[int]:
    """One token a label, all different: one of its own name's where that is possible (a bipartite matching)."""
    wanted = [encode(" " + label.replace("_", " ")) for label in labels]
    owner: dict[int, int] = {}

    def place(label: int, seen: set[int]) -> bool:
        for token in wanted[label]:
            if token not in seen:
                seen.add(token)
                if token not in owner or place(owner[token], seen):
                    owner[token] = label
                    return True
        return False

    spare = [encode(f" {letter}")[0] for letter in _SPARE]
    for label in [label for label in range(len(labels)) if not place(label, set())]:
        wanted[label] = spare
        if not place(label, set()):
            where = f"label {labels[label]!r}"
            raise PenjingError("no token is left to answer with", where=where, attempt="fewer labels")
    return [token for _, token in sorted((label, token) for token, label in owner.items())]


@torch.no_grad()
def log_probabilities(
    model: Any, prompts: Sequence[NDArray[np.int32]], answers: Sequence[int], *, kind: str = "f32"
) -> NDArray[np.float32]:
    """log P(class | prompt), normalized over the classes. `kind`: precision of products, as in `train.precision`."""
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    found_NC = np.empty((len(prompts), len(answers)), np.float32)
    model.eval()
    answer_C = torch.tensor(answers)
    for group in groups([len(prompts[at]) for at in order]):
        members = [order[at] for at in group]
        flat = flatten(pack([document(prompts[at]) for at in members]))
        with precision.autocast(kind, "cpu"):
            last_NH = hidden_states(model, flat)[flat.start_D + flat.size_D - 1]
        found_NC[members] = torch.log_softmax(logits_of(head(model), last_NH, answer_C), 1).numpy()
    return found_NC


def logits_of(top: Head, hidden_NH: Tensor, token_C: Tensor) -> Tensor:
    """Logits of some tokens alone, in float32."""
    logit_NC = top.scale * (hidden_NH.float() @ top.weight_VH[token_C].float().T)
    if top.bias_V is not None:
        logit_NC += top.scale * top.bias_V[token_C].float()
    return logit_NC if top.softcap is None else top.softcap * torch.tanh(logit_NC / top.softcap)


def groups(sizes: Sequence[int]) -> list[range]:
    """Documents in order, so many at a time that they have about _BATCH_TOKENS."""
    found, start, total = [], 0, 0
    for at, size in enumerate(sizes):
        if total and total + size > _BATCH_TOKENS:
            found.append(range(start, at))
            start, total = at, 0
        total += size
    return [*found, range(start, len(sizes))] if sizes else []


def accuracy(predicted_N: NDArray[np.intp], label_N: NDArray[np.intp]) -> Interval:
    """Of all documents, with Wilson's score interval (1927), which holds near 0 and 1 too."""
    num = len(label_N)
    if num == 0:
        raise PenjingError("nothing to judge by", attempt="data with at least one labelled document")
    rate = float((predicted_N == label_N).mean())
    spread = _Z95 * math.sqrt(rate * (1 - rate) / num + (_Z95 / (2 * num)) ** 2)
    centre, scale = rate + _Z95**2 / (2 * num), 1 + _Z95**2 / num
    return Interval(rate, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def macro_f1(predicted_NC: NDArray[np.bool_], label_NC: NDArray[np.bool_], *, samples: int = 1000) -> Interval:
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN), 0 where a class is neither there nor predicted.

    The interval is of documents drawn again (percentile bootstrap, seeded).
    """
    if len(label_NC) == 0:
        raise PenjingError("nothing to judge by", attempt="data with at least one labelled document")
    hit_NC = (predicted_NC & label_NC).astype(np.float32)
    all_NC = predicted_NC.astype(np.float32) + label_NC
    num = len(label_NC)
    rng = np.random.default_rng(0)
    weight_BN = rng.multinomial(num, np.full(num, 1 / num), size=samples).astype(np.float32)
    scores_B = _f1(weight_BN @ hit_NC, weight_BN @ all_NC)
    low, high = np.percentile(scores_B, [2.5, 97.5])
    return Interval(float(_f1(hit_NC.sum(0), all_NC.sum(0))), float(low), float(high))


def _f1(hits: NDArray[np.float32], both: NDArray[np.float32]) -> NDArray[np.float32]:
    f1: NDArray[np.float32] = (2 * hits / np.maximum(both, 1)).mean(-1)
    return f1
