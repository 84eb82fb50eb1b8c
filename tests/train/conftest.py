"""Models and documents small enough to train in a second."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from penjing.train.batch import PackedBatches, Tokens, document

VOCABULARY = 101


def make_tiny(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {"hidden_size": 40, "intermediate_size": 52, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**{"vocab_size": VOCABULARY, "num_key_value_heads": 2, **settings, **changes})
    return LlamaForCausalLM(config)


def make_documents(count: int = 40, seed: int = 0, longest: int = 30) -> list[Tokens]:
    """Of 1 to `longest` tokens, of the few that come first in the vocabulary: something to learn."""
    rng = np.random.default_rng(seed)
    return [document(rng.integers(3, 20, size=size)) for size in rng.integers(1, longest + 1, size=count)]


@pytest.fixture
def tiny() -> Any:
    return make_tiny()


@pytest.fixture
def batches() -> PackedBatches:
    return PackedBatches(make_documents(), rows=2, length=32)
