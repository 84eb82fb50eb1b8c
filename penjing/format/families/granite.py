"""Granite 3: Llama with a multiplier on embeddings, attention scores, residuals and logits (arXiv:2405.04324)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penjing.format.architecture import Architecture
from penjing.format.families import Part, decoder, decoder_parts
from penjing.format.source import bad_key, number


def architecture(config: dict[str, Any]) -> Architecture:
    logits_scaling = number(config, "logits_scaling", 1.0)  # transformers divides by it
    if logits_scaling == 0:
        raise bad_key(config, "logits_scaling", "logits are divided by it")
    return decoder(
        config,
        embedding_scale=number(config, "embedding_multiplier", 1.0),
        attention_scale=number(config, "attention_multiplier", 1.0),
        residual_scale=number(config, "residual_multiplier", 1.0),
        logit_scale=1.0 / logits_scaling,
    )


def parts(arch: Architecture) -> Iterator[Part]:
    return decoder_parts(arch)
