"""Gemma 3 with eyes: only its text model is opened; the vision tower is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penjing.format.architecture import Architecture
from penjing.format.families import Part, gemma3_text
from penjing.format.source import bad_key


def architecture(config: dict[str, Any]) -> Architecture:
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise bad_key(config, "text_config", "the text model's config is needed")
    outer = {key: config[key] for key in ("eos_token_id", "bos_token_id", "tie_word_embeddings") if key in config}
    return gemma3_text.architecture({"model_type": "gemma3_text"} | outer | text)


def parts(arch: Architecture) -> Iterator[Part]:
    return gemma3_text.parts(arch)
