"""Measurements side by side, for a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from penjing.cli._show import number, size, table

#: line, where its value is in `measure --json`, how it reads
_LINES: tuple[tuple[str, tuple[str, ...], Callable[[Any], str]], ...] = (
    ("file", ("bytes",), size),
    ("bits per weight", ("bits_per_weight",), lambda value: number(value, 4)),
    ("held-out perplexity", ("quality", "perplexity"), lambda value: number(value, 4)),
    ("bits per byte", ("quality", "bits_per_byte"), lambda value: number(value, 4)),
    ("KL to parent, nats", ("quality", "kl_to_parent"), lambda value: number(value, 3)),
    ("top-1 agreement", ("quality", "top1_agreement"), lambda value: f"{value:.1%}"),
    ("prefill, tokens/s", ("speed", "prefill_tokens_per_s"), number),
    ("decode, tokens/s", ("speed", "decode_tokens_per_s"), number),
    ("  of the limit", ("speed", "decode_limit_fraction"), lambda value: f"{value:.0%}"),
    ("  threads", ("speed", "threads"), str),
    ("  spread", ("speed", "spread"), lambda value: f"±{value:.0%}"),
    ("first token", ("speed", "first_token_s"), lambda value: f"{number(value)} s"),
    ("decode, 1 thread", ("speed", "one_thread", "decode_tokens_per_s"), number),
    ("peak memory", ("memory", "peak_rss_bytes"), size),
    ("  beyond the file", ("memory", "over_file_bytes"), size),
)


def measured(columns: Sequence[str], results: Sequence[Mapping[str, Any]]) -> Table:
    """One column a result, one line for whatever any of them has."""
    found = table("", *columns)
    for title, keys, read in _LINES:
        values = [_at(result, keys) for result in results]
        if any(value is not None for value in values):
            found.add_row(title, *("–" if value is None else read(value) for value in values))
    return found


def _at(result: Mapping[str, Any], keys: Sequence[str]) -> Any:
    value: Any = result
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
