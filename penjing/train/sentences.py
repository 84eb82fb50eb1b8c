"""Batches for an encoder: two parts of a text, the second of which follows the first or is from anywhere.

As in BERT (arXiv:1810.04805, section 3.1): [CLS] first [SEP] second [SEP]; label 0 where the second follows, 1 where it
does not, each half of the time.

Shapes: N tokens of all texts, T tokens of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from penjing.data.new_tokenizer import CLS, SEP
from penjing.errors import PenjingError
from penjing.train.batch import Batch, Tokens, pack, stack


class SentencePairs:
    """`rows` pairs of up to `length` tokens a step, drawn from seed and step alone."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, *, rows: int, length: int, seed: int = 0) -> None:
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        self._half = (length - 3) // 2
        self._texts = [np.array(one.ids, np.int32) for one in encoded if len(one.ids) >= 2 * self._half]
        if self._half < 1 or not self._texts:
            raise PenjingError(f"no text has {2 * self._half} tokens", attempt="longer texts, or a shorter --context")
        self._rows, self._length, self._seed = rows, length, seed
        self._cls, self._sep = (tokenizer.token_to_id(name) for name in (CLS, SEP))

    @cached_property
    def digest(self) -> str:
        found = hashlib.sha256(f"sentences {self._rows} {self._length} {self._seed}\n".encode())
        for token_N in self._texts:
            found.update(len(token_N).to_bytes(8, "little") + token_N.astype("<i4").tobytes())
        return found.hexdigest()

    def at(self, step: int) -> list[Batch]:
        rng = np.random.default_rng((self._seed, step))
        return [stack([pack([self._pair(rng)]) for _ in range(self._rows)])]

    def _pair(self, rng: np.random.Generator) -> Tokens:
        text_N, start = self._place(rng, 2 * self._half)
        first, second = text_N[start : start + self._half], text_N[start + self._half : start + 2 * self._half]
        label = int(rng.integers(2))
        if label == 1:
            text_N, start = self._place(rng, self._half)
            second = text_N[start : start + self._half]
        token_T = np.concatenate([[self._cls], first, [self._sep], second, [self._sep]]).astype(np.int32)
        return Tokens(token_T, np.ones(len(token_T), np.bool_), label)

    def _place(self, rng: np.random.Generator, size: int) -> tuple[NDArray[np.int32], int]:
        """A text, by its length, and a place in it before `size` tokens."""
        room = np.array([len(text_N) - size + 1 for text_N in self._texts])
        text_N = self._texts[int(rng.choice(len(room), p=room / room.sum()))]
        return text_N, int(rng.integers(len(text_N) - size + 1))
