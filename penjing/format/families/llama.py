"""Llama 1 to 3 and its many descendants, SmolLM 2 among them (arXiv:2302.13971)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penjing.format.architecture import Architecture
from penjing.format.families import Part, decoder, decoder_parts


def architecture(config: dict[str, Any]) -> Architecture:
    return decoder(config)


def parts(arch: Architecture) -> Iterator[Part]:
    return decoder_parts(arch)
