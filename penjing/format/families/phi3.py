"""Phi 3 and 4: Llama with fused tensors, part of each head turning, one window for all layers (arXiv:2404.14219)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penjing.format.architecture import Architecture
from penjing.format.families import LLAMA_LAYER, Part, decoder, decoder_parts, sliding_everywhere

_LAYER = {
    **LLAMA_LAYER,
    "q": "self_attn.qkv_proj",
    "k": "self_attn.qkv_proj",
    "v": "self_attn.qkv_proj",
    "gate": "mlp.gate_up_proj",
    "up": "mlp.gate_up_proj",
}


def architecture(config: dict[str, Any]) -> Architecture:
    config = {"original_max_position_embeddings": 4096} | config
    for key in ("rope_scaling", "rope_parameters"):
        found = config.get(key)
        if isinstance(found, dict) and (found.get("rope_type") or found.get("type")) in ("su", "yarn"):
            config[key] = found | {"rope_type": "longrope"}  # what the first configs called it
    return decoder(config, rotary=1.0, layer_window=sliding_everywhere(config))


def parts(arch: Architecture) -> Iterator[Part]:
    q, kv, inner = arch.q_size, arch.kv_size, arch.intermediate_size
    rows = {
        "q": slice(0, q),
        "k": slice(q, q + kv),
        "v": slice(q + kv, q + 2 * kv),
        "gate": slice(0, inner),
        "up": slice(inner, 2 * inner),
    }
    return decoder_parts(arch, layer=_LAYER, rows=rows)
