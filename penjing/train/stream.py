"""Batches from one long stream of tokens: every step takes windows anywhere in it.

Shapes: N tokens of the stream, B rows, T tokens of a row.
"""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.train.batch import Batch, document, pack, stack


class StreamBatches:
    """`rows` windows of `length` tokens a step, drawn from seed and step alone."""

    def __init__(self, token_N: NDArray[np.int32], *, rows: int, length: int, seed: int = 0) -> None:
        if len(token_N) <= length:
            raise PenjingError(f"{len(token_N)} tokens are not one window of {length}", attempt="more text")
        self._token_N, self._rows, self._length, self._seed = token_N, rows, length, seed

    @cached_property
    def digest(self) -> str:
        found = hashlib.sha256(f"stream {self._rows} {self._length} {self._seed}\n".encode())
        found.update(np.ascontiguousarray(self._token_N, "<i4").tobytes())
        return found.hexdigest()

    def at(self, step: int) -> list[Batch]:
        rng = np.random.default_rng((self._seed, step))
        start_B = rng.integers(0, len(self._token_N) - self._length + 1, self._rows)
        return [stack([pack([document(self._token_N[start : start + self._length])]) for start in start_B])]
