"""How often the greedy answer is the right one, of those that are allowed: answers of several tokens, in one pass.

Decoding greedily within a set of answers takes at each token the likeliest of those that some allowed answer goes on
with. It ends with the right answer exactly if each token of that one is the likeliest there, which a single pass over
the right answer shows. It is what the engine says under a regex of the answers (`run --regex 'yes|no'`).

Shapes: N tokens to predict, D documents, C different tokens of answers, H hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penjing.measure.classify import groups, logits_of
from penjing.train import precision
from penjing.train.batch import Document, pack
from penjing.train.forward import flatten, head, hidden_states, targets

Answer = tuple[int, ...]


def answer_of(document: Document) -> Answer:
    """The tokens that are to be predicted."""
    return tuple(document.token_T[1:][document.target_T[1:]].tolist())


@torch.no_grad()
def right_answers(
    model: Any, documents: Sequence[Document], allowed: Collection[Answer], *, kind: str = "f32"
) -> NDArray[np.bool_]:
    """right_D: whether each document's own answer is what greedy decoding within `allowed` gives.

    `kind`: precision of products, as in `train.precision`.
    """
    branches = _branches({*allowed, *map(answer_of, documents)})
    token_C = torch.tensor(sorted(set().union(*branches.values())))
    at = {token: column for column, token in enumerate(token_C.tolist())}
    right_D = np.ones(len(documents), bool)
    model.eval()
    for group in groups([len(document.token_T) for document in documents]):
        members = [documents[number] for number in group]
        flat = flatten(pack(members))
        with precision.autocast(kind, "cpu"):
            hidden_NH = hidden_states(model, flat)
        logit_NC = logits_of(head(model), hidden_NH[targets(flat)[0]], token_C)
        row = 0
        for number, document in zip(group, members, strict=True):
            answer = answer_of(document)
            for length, token in enumerate(answer):
                rivals = [at[other] for other in branches[answer[:length]]]
                right_D[number] &= bool(logit_NC[row, at[token]] >= logit_NC[row, rivals].max())
                row += 1
    return right_D


def _branches(answers: Collection[Answer]) -> dict[Answer, set[int]]:
    """What may follow each beginning of an answer."""
    found: dict[Answer, set[int]] = {}
    for answer in answers:
        for length, token in enumerate(answer):
            found.setdefault(answer[:length], set()).add(token)
    return found
