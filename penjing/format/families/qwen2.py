"""Qwen 2 and 2.5: Llama with biases on q, k and v, and windows in the upper layers (arXiv:2407.10671)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penjing.format.architecture import Architecture
from penjing.format.families import Part, decoder, decoder_parts, sliding_above


def architecture(config: dict[str, Any]) -> Architecture:
    return decoder(config, layer_window=sliding_above(config))


def parts(arch: Architecture) -> Iterator[Part]:
    return decoder_parts(arch, biased=("q", "k", "v"))
