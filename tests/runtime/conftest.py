"""A session that follows a script and a tokenizer of single bytes: generation without a model."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

END = "<end>"


def byte_level() -> Tokenizer:
    """One token a byte, as the byte-level BPE of GPT-2 begins, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


class Script:
    """A session that wants to say fixed tokens: logits after n tokens in all point at the nth of the script."""

    def __init__(self, script: list[int], vocab_size: int, context: int = 2048) -> None:
        self.script, self.vocab_size, self.context = script, vocab_size, context
        self.tokens: list[int] = []
        self.blocks: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        assert 0 <= length <= len(self.tokens)
        del self.tokens[length:]

    def cancel(self) -> None:
        """Nothing is ever under way."""

    def forward(self, tokens, num_logits: int = 1) -> np.ndarray:
        assert len(self.tokens) + len(tokens) <= self.context
        self.blocks.append(len(tokens))
        self.tokens.extend(tokens)
        logits = np.zeros((num_logits, self.vocab_size), dtype=np.float32)
        for row in range(num_logits):
            after = len(self.tokens) - num_logits + 1 + row
            logits[row, self.script[after % len(self.script)]] = 1.0
        return logits


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    return byte_level()


@pytest.fixture
def script_session() -> type[Script]:
    return Script
