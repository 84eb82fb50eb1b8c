"""A BERT small enough to run in a moment."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 67


def bert(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    settings = {"hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **settings, **changes)
    return getattr(transformers, f"BertFor{kind}")(config).eval()
