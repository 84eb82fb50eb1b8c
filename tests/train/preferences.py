"""Pairs of answers, and their log-probabilities by the plainest way."""

from __future__ import annotations

from typing import Any

import torch

from penjing.train.batch import Batch, document, pack, stack

#: prompt, chosen, rejected
PAIRS = [([5, 6, 7], [8, 9], [10, 11, 12]), ([13], [14], [15, 16]), ([17, 18], [19, 20, 21], [22])]


def pairs() -> Batch:
    rows = [[document([*p, *a], answer_from=len(p)) for a in (chosen, rejected)] for p, chosen, rejected in PAIRS]
    return stack([pack([*rows[0], *rows[1]]), pack(rows[2])])


def slow_log_probability(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logp_TV = model(torch.tensor([[*prompt, *answer]])).logits[0].float().log_softmax(-1)
    return torch.stack([logp_TV[len(prompt) + at - 1, token] for at, token in enumerate(answer)]).sum()
