"""Masked language modelling: guess tokens from those on both sides (BERT, arXiv:1810.04805, section 3.1).

Of the tokens that may be guessed 15% are: 8 in 10 become the mask, 1 in 10 any token, 1 in 10 stay. Which ones depends
on the tokens and the seed alone, so that a resumed run masks the same; packed anew, the same text is masked anew.

Shapes: D documents, T tokens, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from penjing.train.batch import Batch
from penjing.train.objectives import Loss
from penjing.train.padded import Padded, padded


@dataclass(frozen=True, kw_only=True)
class Objective:
    """mask: the id of the mask token. num_special: ids below it are never masked. share: of tokens to guess."""

    mask: int
    num_special: int = 0
    share: float = 0.15
    seed: int = 0

    def __call__(self, model: Any, batch: Batch) -> Loss:
        documents = padded(batch)
        token_DT, chosen_DT = masked(documents, self, model.config.vocab_size)
        logit_DTV = model(input_ids=token_DT, attention_mask=documents.real_DT).logits
        return guesses(logit_DTV, documents.token_DT, chosen_DT)


def guesses(logit_DTV: Tensor, token_DT: Tensor, chosen_DT: Tensor) -> Loss:
    total = cross_entropy(logit_DTV[chosen_DT].float(), token_DT[chosen_DT], reduction="sum")
    return Loss(total, float(chosen_DT.sum()))


def masked(documents: Padded, settings: Objective, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The tokens that the model sees, and which of them it has to guess."""
    token_DT = documents.token_DT
    random = torch.Generator(token_DT.device)
    random.manual_seed((settings.seed * 1_000_003 + content_seed(token_DT)) % 2**63)
    draw_DT = torch.rand(token_DT.shape, generator=random, device=token_DT.device)
    any_DT = torch.randint(settings.num_special, vocab_size, token_DT.shape, generator=random, device=token_DT.device)
    may_DT = documents.real_DT & (token_DT >= settings.num_special) & (token_DT != settings.mask)
    chosen_DT = may_DT & (draw_DT < settings.share)
    seen_DT = token_DT.masked_fill(chosen_DT & (draw_DT < 0.8 * settings.share), settings.mask)
    swapped_DT = chosen_DT & (draw_DT >= 0.9 * settings.share)
    return torch.where(swapped_DT, any_DT, seen_DT), chosen_DT


def content_seed(token_DT: Tensor) -> int:
    """A number that depends on every token and its place."""
    place_N = torch.arange(1, token_DT.numel() + 1, device=token_DT.device) % 65_521
    return int((token_DT.flatten() * (place_N * 7919 + 13)).sum())
