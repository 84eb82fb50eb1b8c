"""From logits to the next token, in numpy.

Shapes: V vocabulary, K candidates that are left.

The order is that of transformers: repetition penalty, temperature, top-k, top-p, min-p. (llama.cpp applies the
temperature last, so its top-p and min-p see other probabilities.) Each filter judges what the one before it left,
renormalised. Ties at the edge of top-k are all kept, as transformers keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError

TINY = float(np.finfo(np.float32).tiny)
Candidates = tuple[NDArray[np.int64] | None, NDArray[np.float32]]  # token ids (None: all of them), their logits


class Constraint(Protocol):
    """What an answer may be (see constrain.py)."""

    def allow(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]: ...
    def try_accept(self, token: int) -> bool: ...
    def accept(self, token: int) -> None: ...


class Sampler:
    """Draws tokens. The same seed draws the same tokens from the same logits.

    temperature: 0 takes the most likely token and ignores the filters. top_k: 0 is off. top_p: 1 is off.
    min_p: a token needs this fraction of the best token's probability; 0 is off.
    repetition_penalty: divides positive, multiplies negative logits of tokens seen before; 1 is off (arXiv:1909.05858).
    seed: None takes one from the system. constraint: tokens that it does not allow are never drawn; for one answer.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        _require("temperature", temperature, 0 <= temperature < math.inf, "a number from 0 up, such as 0.7")
        _require("top_k", top_k, top_k >= 0 and top_k == int(top_k), "a whole number from 0 (off) up")
        _require("top_p", top_p, 0 < top_p <= 1, "a number above 0, up to 1 (off)")
        _require("min_p", min_p, 0 <= min_p <= 1, "a number from 0 (off) to 1")
        _require("repetition_penalty", repetition_penalty, 0 < repetition_penalty < math.inf, "1 (off) or e.g. 1.1")
        _require("seed", seed, seed is None or seed >= 0, "a whole number from 0 up")
        self.temperature = temperature
        self.top_k = int(top_k)
        self.top_p = top_p
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty
        self.constraint = constraint
        self._random = np.random.default_rng(seed)
        self._unfiltered = temperature == 0 or (top_k == 0 and top_p == 1 and min_p == 0)

    def __call__(self, logits_V: NDArray[np.float32], history: Sequence[int]) -> int:
        """The next token, given the tokens so far. -inf forbids a token. Raises PenjingError on NaN or +inf."""
        _check(logits_V)
        if self.constraint is None:
            return self._draw(logits_V, history)
        # Try what would be said anyway: most of it has the form, and then no mask is needed. The likeliest of all, if
        # allowed, is the likeliest of the allowed; and drawing once from all and, if refused, from the allowed gives
        # p + (1 - z) p / z = p / z, their distribution (z: probability of all that is allowed). Filters break that sum.
        if self._unfiltered and self.constraint.try_accept(token := self._draw(logits_V, history)):
            return token
        allowed_V = self.constraint.allow(logits_V)
        _check(allowed_V)
        token = self._draw(allowed_V, history)
        self.constraint.accept(token)
        return token

    def _draw(self, logits_V: NDArray[np.float32], history: Sequence[int]) -> int:
        logits_V = penalize(logits_V, history, self.repetition_penalty)
        if self.temperature == 0:
            return int(logits_V.argmax())
        ids_K, logits_K = self.filtered(logits_V)
        weight_K = np.exp(logits_K - logits_K.max())
        index = _pick(weight_K, self._random.random())
        return index if ids_K is None else int(ids_K[index])

    def filtered(self, logits_V: NDArray[np.float32]) -> Candidates:
        """What temperature and filters leave: token ids (None: every token, in order) and their scaled logits."""
        best = logits_V.max()
        # taking the maximum away first keeps tiny temperatures finite
        with np.errstate(over="ignore"):  # an overflow to -inf is a probability of 0, which is right
            scaled_V = (logits_V - best) / np.float32(max(self.temperature, TINY))
        candidates: Candidates = (None, scaled_V)
        if 0 < self.top_k < len(scaled_V):
            candidates = top_k(candidates, self.top_k)
        if self.top_p < 1:
            candidates = top_p(candidates, self.top_p)
        if self.min_p > 0:
            candidates = min_p(candidates, self.min_p)
        return candidates


def penalize(logits_V: NDArray[np.float32], history: Sequence[int], penalty: float) -> NDArray[np.float32]:
    """A copy with the tokens of `history` made less likely (penalty > 1)."""
    if penalty == 1 or not len(history):
        return logits_V
    seen = np.unique(np.asarray(history, dtype=np.int64))
    seen_logits = logits_V[seen]
    penalized_V = logits_V.copy()
    penalized_V[seen] = np.where(seen_logits < 0, seen_logits * penalty, seen_logits / penalty)
    return penalized_V


def top_k(candidates: Candidates, k: int) -> Candidates:
    """The k most likely candidates, and any that tie with the last of them."""
    logits_K = candidates[1]
    if k >= len(logits_K):
        return candidates
    edge = np.partition(logits_K, len(logits_K) - k)[len(logits_K) - k]
    return _keep(candidates, logits_K >= edge)


def top_p(candidates: Candidates, p: float) -> Candidates:
    """The smallest set of the most likely candidates whose probabilities sum to p or more. Ties: lower tokens first."""
    logits_K = candidates[1]
    weight_K = np.exp(logits_K - logits_K.max())
    wanted = p * float(weight_K.sum(dtype=np.float64))
    # sorting 49k entries to keep a dozen is waste: look among the best 256, then 8 times as many, …
    size = 256
    while True:
        size = min(size, len(weight_K))
        best = np.sort(np.partition(weight_K, len(weight_K) - size)[len(weight_K) - size :])[::-1]
        mass = np.cumsum(best, dtype=np.float64)
        if mass[-1] >= wanted or size == len(weight_K):
            break
        size *= 8
    count = min(int(np.searchsorted(mass, wanted)) + 1, size)
    edge = best[count - 1]
    above = int(np.count_nonzero(best[:count] > edge))
    tied = np.flatnonzero(weight_K == edge)[: count - above]
    return _keep(candidates, np.sort(np.concatenate([np.flatnonzero(weight_K > edge), tied])))


def min_p(candidates: Candidates, p: float) -> Candidates:
    """Candidates with at least p times the probability of the best one."""
    logits_K = candidates[1]
    return _keep(candidates, logits_K >= logits_K.max() + np.float32(math.log(p)))


def _keep(candidates: Candidates, which: NDArray[np.bool_] | NDArray[np.intp]) -> Candidates:
    ids_K, logits_K = candidates
    index: NDArray[np.int64] = np.flatnonzero(which) if which.dtype == bool else which.astype(np.int64)
    return (index if ids_K is None else ids_K[index]), logits_K[index]


def _pick(weight_K: NDArray[np.float32], uniform: float) -> int:
    """The index where the running sum of weights passes `uniform` (in [0, 1)) of their total."""
    # a running sum of all is 10 times slower than sums of blocks and a running sum in one block
    block = 256
    num_blocks = -(-len(weight_K) // block)
    padded = np.zeros(num_blocks * block, dtype=np.float32)
    padded[: len(weight_K)] = weight_K
    weight_NB = padded.reshape(num_blocks, block)
    ends_N = np.cumsum(weight_NB.sum(axis=1), dtype=np.float64)
    target = uniform * ends_N[-1]
    n = int(np.searchsorted(ends_N, target, side="right"))
    ends_B = np.cumsum(weight_NB[n], dtype=np.float64) + (ends_N[n - 1] if n else 0.0)
    b = int(np.searchsorted(ends_B, target, side="right"))
    # the two sums round differently: past the end of a block means its last candidate that can be drawn
    return n * block + min(b, int(np.flatnonzero(weight_NB[n])[-1]))


def _check(logits_V: NDArray[np.float32]) -> None:
    if logits_V.ndim != 1 or not len(logits_V):
        raise PenjingError(f"logits of shape {logits_V.shape}, not one row", where="sampling")
    best = logits_V.max()  # NaN anywhere makes it NaN
    if not np.isfinite(best):
        fact = "every token is forbidden" if best == -np.inf else f"the model's logits contain {best}"
        attempt = "" if best == -np.inf else "measure the model: it may be damaged, or quantized too far"
        raise PenjingError(fact, where="sampling the next token", attempt=attempt)


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:  # NaN holds nothing
        raise PenjingError(f"{name} is {value}", where="sampling settings", attempt=wanted)
