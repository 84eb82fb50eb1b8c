"""Quality on held-out text: perplexity, bits per byte, and how far from the parent's predictions.

Position t of a window predicts token t + 1; nothing predicts the first token. Logits are float32, everything computed
from them is float64, one position at a time, so that memory is a few rows of the vocabulary, whatever its size.
On a vocabulary of 49152 one position takes about 0.05 ms, with a parent 0.13 ms: far below the models' own time.

Shapes: V vocabulary, T tokens of a window, C positions of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from penjing.data.text import Windows
from penjing.errors import PenjingError

#: what is under way, steps done, steps in all
Progress = Callable[[str, int, int], None]


class Scorer(Protocol):
    """A model that predicts text."""

    @property
    def vocab_size(self) -> int: ...

    def logits(self, tokens_T: NDArray[np.int32]) -> Iterator[NDArray[np.float32]]:
        """Logits [C, V] of every position of one fresh window, in order, in chunks of any size."""
        ...


@dataclass(frozen=True, kw_only=True)
class Quality:
    """`kl_to_parent` is the mean of KL(parent ‖ model) in nats a token, `top1_agreement` a fraction of tokens."""

    perplexity: float
    bits_per_byte: float
    tokens: int  # predicted ones
    kl_to_parent: float | None = None
    top1_agreement: float | None = None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
        }
        if self.kl_to_parent is not None:
            found |= {"kl_to_parent": self.kl_to_parent, "top1_agreement": self.top1_agreement}
        return found


class _Row:
    """The softmax of one row of logits, in arrays that are used again for every row."""

    def __init__(self, vocab_size: int) -> None:
        self.exp_V = np.empty(vocab_size, np.float64)
        self.log_normalizer = 0.0  # log Σ exp(logit)
        self.total = 1.0  # Σ exp_V, where exp_V = exp(logit - largest)
        self.top = 0

    def read(self, logit_V: NDArray[np.float32]) -> None:
        self.top = int(logit_V.argmax())
        largest = float(logit_V[self.top])
        np.subtract(logit_V, largest, out=self.exp_V, dtype=np.float64)
        np.exp(self.exp_V, out=self.exp_V)
        self.total = float(self.exp_V.sum())
        self.log_normalizer = math.log(self.total) + largest


class _Sums:
    """What adds up over the positions of one model."""

    def __init__(self, vocab_size: int) -> None:
        self.row = _Row(vocab_size)
        self.nll = 0.0
        self.kl = 0.0
        self.agreed = 0
        self.difference_V = np.empty(vocab_size, np.float64)

    def add(self, logit_V: NDArray[np.float32], token: int) -> None:
        self.row.read(logit_V)
        self.nll += self.row.log_normalizer - float(logit_V[token])

    def add_parent(self, parent: _Row, parent_logit_V: NDArray[np.float32], logit_V: NDArray[np.float32]) -> None:
        """KL = Σ p (a - b) - (log Σ exp a - log Σ exp b), for logits a of the parent and b of the model."""
        np.subtract(parent_logit_V, logit_V, out=self.difference_V, dtype=np.float64)
        mean_difference = float(parent.exp_V @ self.difference_V) / parent.total
        self.kl += mean_difference - (parent.log_normalizer - self.row.log_normalizer)
        self.agreed += parent.top == self.row.top

    def quality(self, windows: Windows, *, has_parent: bool) -> Quality:
        count = windows.num_predicted
        mean_nll = self.nll / count
        return Quality(
            perplexity=math.exp(mean_nll) if mean_nll < 700 else math.inf,
            bits_per_byte=self.nll / math.log(2) / windows.num_bytes,
            tokens=count,
            kl_to_parent=max(0.0, self.kl / count) if has_parent else None,  # rounding can leave -1e-17
            top1_agreement=self.agreed / count if has_parent else None,
        )


def quality(
    scorer: Scorer,
    windows: Windows,
    *,
    parent: Scorer | None = None,
    progress: Progress | None = None,
) -> Quality:
    """The quality of one model. Raises as `qualities` does."""
    return qualities({"model": scorer}, windows, parent=parent, progress=progress)["model"]


def qualities(
    scorers: Mapping[str, Scorer],
    windows: Windows,
    *,
    parent: Scorer | None = None,
    progress: Progress | None = None,
) -> dict[str, Quality]:
    """Several models on the same windows; the parent predicts each window once for all of them.

    Steps of `progress` are windows. Raises PenjingError for logits that are not finite, for
    vocabularies that differ from the parent's, and for tokens that a model does not know.
    """
    _check_vocabularies(scorers, windows, parent)
    sums = {name: _Sums(scorer.vocab_size) for name, scorer in scorers.items()}
    parent_row = _Row(parent.vocab_size) if parent is not None else None
    num_windows = len(windows.tokens_WT)
    for done, tokens_T in enumerate(windows.tokens_WT, 1):
        rows = {name: _rows(scorer, tokens_T, name) for name, scorer in scorers.items()}
        parent_rows = _rows(parent, tokens_T, "parent") if parent is not None else None
        for token in tokens_T[1:].tolist():
            if parent_rows is not None and parent_row is not None:
                parent_logit_V = next(parent_rows)
                parent_row.read(parent_logit_V)
            for name, total in sums.items():
                logit_V = next(rows[name])
                total.add(logit_V, token)
                if parent_row is not None:
                    total.add_parent(parent_row, parent_logit_V, logit_V)
        if progress is not None:
            progress("quality", done, num_windows)
    return {name: total.quality(windows, has_parent=parent is not None) for name, total in sums.items()}


def _rows(scorer: Scorer, tokens_T: NDArray[np.int32], name: str) -> Iterator[NDArray[np.float32]]:
    """Logits of the positions one by one, all of them finite."""
    start = 0
    for logit_CV in scorer.logits(tokens_T):
        finite_C = np.isfinite(logit_CV).all(axis=1)
        if not finite_C.all():
            raise PenjingError(
                f"logits that are not finite, at position {start + int(finite_C.argmin())}",
                where=f"model {name!r}",
                attempt="more bits for this model, or check its parent",
            )
        start += len(logit_CV)
        yield from logit_CV
    if start != len(tokens_T):
        raise RuntimeError(f"{name}: {start} rows of logits for {len(tokens_T)} tokens")


def _check_vocabularies(scorers: Mapping[str, Scorer], windows: Windows, parent: Scorer | None) -> None:
    tokens_WT = windows.tokens_WT
    if windows.num_predicted == 0 or windows.num_bytes <= 0:
        raise PenjingError("nothing to predict: no windows of at least two tokens", attempt="more text")
    for name, scorer in scorers.items():
        if tokens_WT.min() < 0 or tokens_WT.max() >= scorer.vocab_size:
            raise PenjingError(
                f"token {int(tokens_WT.max())} is beyond a vocabulary of {scorer.vocab_size}",
                where=f"model {name!r}",
                attempt="text tokenized by this model's own tokenizer",
            )
        if parent is not None and parent.vocab_size != scorer.vocab_size:
            raise PenjingError(
                f"its vocabulary of {scorer.vocab_size} is not the parent's of {parent.vocab_size}",
                where=f"model {name!r}",
                attempt="measure without a parent: perplexity and bits per byte need none",
            )
