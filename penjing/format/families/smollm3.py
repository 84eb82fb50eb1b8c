"""SmolLM 3: Llama where some layers (every fourth) know no positions. https://huggingface.co/blog/smollm3"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penjing.format.architecture import Architecture
from penjing.format.families import Part, decoder, decoder_parts, layer_count, windows
from penjing.format.source import bad_key, integer


def architecture(config: dict[str, Any]) -> Architecture:
    config = {"tie_word_embeddings": True} | config
    num_layers = layer_count(config)
    turning = config.get("no_rope_layers")  # 1 where there *is* a rope, whatever the key says
    if turning is None:
        interval = integer(config, "no_rope_layer_interval", 4) or num_layers + 1
        turning = [int((n + 1) % interval != 0) for n in range(num_layers)]
    if not isinstance(turning, list) or len(turning) != num_layers:
        raise bad_key(config, "no_rope_layers", f"{num_layers} layers are needed")
    kinds = config.get("layer_types")
    if kinds is None:
        sliding = config.get("use_sliding_window") and config.get("sliding_window") is not None
        kinds = ["sliding_attention" if sliding and not turns else "full_attention" for turns in turning]
    return decoder(
        config,
        rope_theta=2_000_000.0,
        layer_rope=tuple(0 if turns else -1 for turns in turning),
        layer_window=windows(config, kinds),
    )


def parts(arch: Architecture) -> Iterator[Part]:
    return decoder_parts(arch)
