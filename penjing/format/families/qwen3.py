"""Qwen 3: Llama with a norm on every query and key head, and windows in the upper layers (arXiv:2505.09388)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penjing.format.architecture import Architecture
from penjing.format.families import Part, decoder, decoder_parts, sliding_above


def architecture(config: dict[str, Any]) -> Architecture:
    return decoder({"head_dim": 128} | config, qk_norm="head", layer_window=sliding_above(config))


def parts(arch: Architecture) -> Iterator[Part]:
    return decoder_parts(arch)
