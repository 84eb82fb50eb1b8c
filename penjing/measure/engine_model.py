"""Logits of a packed model from the engine that ships it. Shapes: T tokens, C positions of a chunk, V vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from penjing.runtime.session import Session

#: logits held at a time: 64 MB
_CHUNK_LOGITS = 1 << 24


class EngineScorer:
    """A `Session` as a scorer. The session's context must hold a window; what it held before is forgotten."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def vocab_size(self) -> int:
        return self._session.vocab_size

    def logits(self, tokens_T: NDArray[np.int32]) -> Iterator[NDArray[np.float32]]:
        self._session.truncate(0)
        chunk = max(1, _CHUNK_LOGITS // self.vocab_size)
        for start in range(0, len(tokens_T), chunk):
            tokens_C = tokens_T[start : start + chunk]
            yield self._session.forward(tokens_C, num_logits=len(tokens_C))
