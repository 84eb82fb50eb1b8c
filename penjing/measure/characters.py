"""Bits per character of a causal model on texts it has not seen: every token of them, special ones aside, is predicted.

Windows overlap by half, so that no token but those of a text's beginning has less than half a window before it.

Shapes: N tokens of a text, T tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from penjing.errors import PenjingError
from penjing.train.batch import Tokens, pack
from penjing.train.objectives.causal_lm import Objective

_TOKENS_AT_ONCE = 4096


def bits_per_character(
    model: Any,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    bos: int,
    length: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> float:
    """`bos` stands before every text, so that its first token is predicted too."""
    windows, characters = [], 0
    for text in texts:
        characters += len(text)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        windows += overlapping(np.array([bos, *ids], np.int32), length)
    if not characters:
        raise PenjingError("no text to measure", attempt="held-out text")
    at_once = max(1, _TOKENS_AT_ONCE // length)
    nats = 0.0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(windows), at_once):
            if progress is not None:
                progress("held-out text", start, len(windows))
            nats += float(Objective()(model, pack(windows[start : start + at_once])).total)
    return nats / math.log(2) / characters


def overlapping(token_N: NDArray[np.int32], length: int) -> list[Tokens]:
    """Windows in which each token but the first is a target once, the later half of every window after the first."""
    found, done, half = [], 1, max(1, length // 2)
    while done < len(token_N):
        start = 0 if done == 1 else done - (length - half)
        token_T = token_N[start : start + length]
        found.append(Tokens(token_T, np.arange(start, start + len(token_T)) >= done))
        done = start + len(token_T)
    return found
