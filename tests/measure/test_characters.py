"""Bits per character: the plainest sum over every token; windows that cover each token once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from train.conftest import make_tiny

from penjing.data.new_tokenizer import END, learn
from penjing.errors import PenjingError
from penjing.measure.characters import bits_per_character, overlapping

TEXTS = ["The pine in the tray is old. é\n", "A tray.", "x"]


@pytest.mark.parametrize("size", [2, 3, 8, 9, 12, 13, 50])
@pytest.mark.parametrize("length", [2, 3, 8])
def test_each_token_is_a_target_once_with_half_a_window_before_it(size, length):
    windows = overlapping(np.arange(size, dtype=np.int32), length)
    targets = np.concatenate([window.token_T[window.target_T] for window in windows])
    assert targets.tolist() == list(range(1, size))
    assert all(len(window.token_T) <= length for window in windows)
    for window in windows[1:]:
        assert int(window.target_T.argmax()) == length - max(1, length // 2)


def test_bits_are_the_plainest_sum():
    tokenizer = learn(TEXTS * 5, 270)
    model = make_tiny(vocab_size=270).eval()
    nats = 0.0
    for text in TEXTS:
        ids = [tokenizer.token_to_id(END), *tokenizer.encode(text).ids]
        logp_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1).detach()
        nats -= sum(float(logp_TV[at, token]) for at, token in enumerate(ids[1:]))
    wanted = nats / math.log(2) / sum(map(len, TEXTS))
    found = bits_per_character(model, tokenizer, TEXTS, bos=0, length=100)
    assert found == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(PenjingError, match="no text"):
        bits_per_character(model, tokenizer, [""], bos=0, length=10)
