"""OLMo 2: norms after attention and MLP only, and one over all query (and all key) heads at once (arXiv:2501.00656)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penjing.format.architecture import Architecture
from penjing.format.families import LLAMA_LAYER, Part, decoder, decoder_parts

_LAYER = {
    **LLAMA_LAYER,
    "attn_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def architecture(config: dict[str, Any]) -> Architecture:
    return decoder(config, qk_norm="full", pre_norm=False, post_norm=True)


def parts(arch: Architecture) -> Iterator[Part]:
    return decoder_parts(arch, layer=_LAYER)
