"""Gemma 3, the text model: norms around everything, windows with a rope of their own (arXiv:2503.19786).

Norm weights are stored minus one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from penjing.format.architecture import Architecture
from penjing.format.families import LLAMA_LAYER, Part, decoder, decoder_parts, layer_count, windows
from penjing.format.rope import max_positions, rope, rope_parameters
from penjing.format.source import bad_key, integer, number, table

#: what published configs leave out
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_LAYER = {
    **LLAMA_LAYER,
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def architecture(config: dict[str, Any]) -> Architecture:
    config = _DEFAULTS | {key: value for key, value in config.items() if value is not None}
    kinds: Any = config.get("layer_types")
    if kinds is None:
        pattern = integer(config, "sliding_window_pattern", 6) or 1
        kinds = ["sliding_attention" if (n + 1) % pattern else "full_attention" for n in range(layer_count(config))]
    layer_window = windows(config, kinds)
    if number(config, "query_pre_attn_scalar") <= 0:
        raise bad_key(config, "query_pre_attn_scalar", "it must be positive")
    everywhere, local = _ropes(config)
    head_dim = integer(config, "head_dim")
    return decoder(
        config,
        act="hidden_activation",
        qk_norm="head",
        post_norm=True,
        attention_scale=number(config, "query_pre_attn_scalar") ** -0.5,
        # a float32 model multiplies by this; in a bfloat16 one transformers rounds it to bfloat16
        embedding_scale=float(np.sqrt(np.float32(integer(config, "hidden_size")))),
        ropes=(rope(everywhere, head_dim), rope(local, head_dim)),
        layer_rope=tuple(int(kind == "sliding_attention") for kind in kinds),
        layer_window=layer_window,
        max_position_embeddings=min(max_positions(everywhere), max_positions(local)),
    )


def _ropes(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of full and of sliding layers: `rope_scaling`, the older key, is for the full ones."""
    nested = table(config, "rope_parameters")
    limit = {"max_position_embeddings": config["max_position_embeddings"]}
    full = table(nested, "full_attention") | table(config, "rope_scaling")
    full_theta, local_theta = number(config, "rope_theta", 1e6), number(config, "rope_local_base_freq", 1e4)
    local = table(nested, "sliding_attention")
    return (
        rope_parameters(limit | {"rope_parameters": full}, theta=full_theta),
        rope_parameters(limit | {"rope_parameters": local}, theta=local_theta),
    )


def parts(arch: Architecture) -> Iterator[Part]:
    aliases = [("model.", "language_model.model."), ("model.", "model.language_model.")]  # inside gemma3
    return decoder_parts(arch, layer=_LAYER, norm_add=1.0, aliases=aliases)
