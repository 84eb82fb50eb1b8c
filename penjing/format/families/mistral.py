"""Mistral: Llama with one attention window for every layer (arXiv:2310.06825)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penjing.format.architecture import Architecture
from penjing.format.families import Part, decoder, decoder_parts, sliding_everywhere


def architecture(config: dict[str, Any]) -> Architecture:
    return decoder(config, layer_window=sliding_everywhere(config))


def parts(arch: Architecture) -> Iterator[Part]:
    return decoder_parts(arch)
