"""Span corruption: spans of a document are taken out, and the model says what they were (T5, arXiv:1910.10683, 3.1.4).

"Thank you for inviting me" → "Thank <0> inviting me", and "<0> you for <1>" to be said. An encoder-decoder reads the
first and says the second; a decoder gets them one after the other, and only the second is a target (arXiv:2205.05131).
Which spans depends on the document and the seed alone.

Shapes: N tokens of a document, D documents, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from penjing.errors import PenjingError
from penjing.train.batch import NO_LABEL, Batch, document, pack
from penjing.train.objectives import Loss, causal_lm
from penjing.train.padded import padded


@dataclass(frozen=True, kw_only=True)
class Objective:
    """first_sentinel: the id of <0>; <1> is the id after it (`downward`: before it, as in T5), and so on.
    num_sentinels: how many there are. share: of the tokens to take out. span: their mean length."""

    first_sentinel: int
    num_sentinels: int = 100
    downward: bool = False
    share: float = 0.15
    span: float = 3.0
    seed: int = 0

    def __call__(self, model: Any, batch: Batch) -> Loss:
        documents = padded(batch)
        sizes = documents.real_DT.sum(1).tolist()
        tokens = [row[:size].cpu().numpy() for row, size in zip(documents.token_DT, sizes, strict=True)]
        both = [corrupted(token_N, self) for token_N in tokens if len(token_N) > 1]
        if model.config.is_encoder_decoder:
            return _encoder_decoder(model, both, batch.token_BT.device)
        whole = [document(np.concatenate(pair), answer_from=len(pair[0])) for pair in both]
        return causal_lm.Objective()(model, pack(whole).to(batch.token_BT.device))


def corrupted(token_N: NDArray[np.int64], settings: Objective) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is read, and what is to be said."""
    if not 0 < settings.share < 1 or settings.span < 1:
        raise PenjingError(
            f"cannot take out {settings.share} of a text in spans of {settings.span}", attempt="0.15 and 3"
        )
    rng = np.random.default_rng([settings.seed, *token_N.tolist()])
    num_out = min(max(1, round(settings.share * len(token_N))), len(token_N) - 1)
    num_spans = min(max(1, round(num_out / settings.span)), num_out, len(token_N) - num_out, settings.num_sentinels - 1)
    out, kept = _parts(rng, num_out, num_spans), _parts(rng, len(token_N) - num_out, num_spans)
    step = -1 if settings.downward else 1
    seen, said, at = [], [], 0
    for number, (before, taken) in enumerate(zip(kept, out, strict=True)):
        sentinel = settings.first_sentinel + step * number
        seen += [*token_N[at : at + before], sentinel]
        said += [sentinel, *token_N[at + before : at + before + taken]]
        at += before + taken
    said.append(settings.first_sentinel + step * num_spans)
    return np.array(seen, np.int64), np.array(said, np.int64)


def _parts(rng: np.random.Generator, total: int, count: int) -> list[int]:
    """`total` as a sum of `count` numbers of 1 or more, each way as likely."""
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1 if count > 1 else np.zeros(0, np.int64)
    return [int(size) for size in np.diff([0, *cuts, total])]


def _encoder_decoder(model: Any, both: list[tuple[NDArray[np.int64], NDArray[np.int64]]], device: torch.device) -> Loss:
    seen_DT = pad_sequence([torch.from_numpy(seen) for seen, _ in both], batch_first=True)
    said_DT = pad_sequence([torch.from_numpy(said) for _, said in both], batch_first=True, padding_value=NO_LABEL)
    sizes = torch.tensor([len(seen) for seen, _ in both])
    real_DT = torch.arange(seen_DT.shape[1]) < sizes[:, None]
    said_DT = said_DT.to(device)
    out = model(input_ids=seen_DT.to(device), attention_mask=real_DT.to(device), labels=said_DT)
    total = cross_entropy(out.logits.flatten(0, 1).float(), said_DT.flatten(), reduction="sum")
    return Loss(total, float((said_DT != NO_LABEL).sum()))
