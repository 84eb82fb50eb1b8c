"""GPT-NeoX and Pythia: LayerNorm, a plain MLP, attention and MLP side by side (arXiv:2204.06745).

The fused tensor holds query, key and value rows head by head: [head, 3, head_dim].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from penjing.format.architecture import Architecture
from penjing.format.families import Part, decoder, decoder_parts
from penjing.format.source import bad_key

_ROOT = "gpt_neox."
_TOP = {"embed": f"{_ROOT}embed_in", "final_norm": f"{_ROOT}final_layer_norm", "head": "embed_out"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "q": "attention.query_key_value",
    "k": "attention.query_key_value",
    "v": "attention.query_key_value",
    "o": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
}
_BIASED = ("attn_norm", "mlp_norm", "final_norm", "up", "down")


def architecture(config: dict[str, Any]) -> Architecture:
    if config.get("num_key_value_heads") not in (None, config.get("num_attention_heads")):
        raise bad_key(config, "num_key_value_heads", "every head has its own keys in this family")
    names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    renamed = {key: config[old] for key, old in names.items() if config.get(old) is not None}
    return decoder(
        {"use_parallel_residual": True, "hidden_act": "gelu"} | renamed | config,
        eps="layer_norm_eps",
        rotary=0.25,
        norm="layer",
        parallel=bool(config.get("use_parallel_residual", True)),
        gated=False,
    )


def parts(arch: Architecture) -> Iterator[Part]:
    index = np.arange(3 * arch.q_size).reshape(arch.num_heads, 3, arch.head_dim)
    rows = {part: index[:, n].ravel() for n, part in enumerate(("q", "k", "v"))}
    aliases = [("embed_out", "lm_head")]  # its name since transformers 5
    return decoder_parts(arch, layer=_LAYER, top=_TOP, root=_ROOT, rows=rows, biased=_BIASED, aliases=aliases)
