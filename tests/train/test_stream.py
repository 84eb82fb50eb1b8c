"""Windows of a stream and pairs of an encoder: what a step sees depends on seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from penjing.data.new_tokenizer import CLS, SEP, learn
from penjing.errors import PenjingError
from penjing.train.sentences import SentencePairs
from penjing.train.stream import StreamBatches

TEXTS = [" ".join(f"w{n}{letter}" for n in range(200)) for letter in "abc"]


def test_windows_are_of_the_stream():
    token_N = np.arange(1000, dtype=np.int32)
    batches = StreamBatches(token_N, rows=5, length=20, seed=3)
    starts = set()
    for step in range(40):
        (batch,) = batches.at(step)
        assert batch.token_BT.shape == (5, 20)
        assert (batch.token_BT.diff(dim=1) == 1).all()
        assert batch.weight_BT.sum() == 5 * 19
        starts |= set(batch.token_BT[:, 0].tolist())
    assert len(starts) > 150
    again = StreamBatches(token_N, rows=5, length=20, seed=3)
    assert torch.equal(batches.at(7)[0].token_BT, again.at(7)[0].token_BT)
    assert again.digest == batches.digest
    changed = token_N.copy()
    changed[500] = 0
    assert StreamBatches(changed, rows=5, length=20, seed=3).digest != batches.digest
    with pytest.raises(PenjingError, match="not one window"):
        StreamBatches(token_N[:20], rows=1, length=20)


def test_every_place_of_a_short_stream_is_seen():
    batches = StreamBatches(np.arange(12, dtype=np.int32), rows=8, length=10, seed=0)
    assert {int(first) for step in range(20) for first in batches.at(step)[0].token_BT[:, 0]} == {0, 1, 2}


def test_pairs_follow_or_do_not():
    tokenizer = learn(TEXTS, 320, encoder=True)
    pairs = SentencePairs(TEXTS, tokenizer, rows=4, length=43, seed=1)
    cls, sep = tokenizer.token_to_id(CLS), tokenizer.token_to_id(SEP)
    texts = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    follows = {0: 0, 1: 0}
    counts = {0: 0, 1: 0}
    for step in range(30):
        (batch,) = pairs.at(step)
        for row, label in zip(batch.token_BT.tolist(), batch.label_BD[:, 0].tolist(), strict=True):
            assert (row[0], row[21], row[42]) == (cls, sep, sep)
            both = row[1:21] + row[22:42]
            found = any(both == ids[at : at + 40] for ids in texts for at in range(len(ids)))
            follows[label] += found
            counts[label] += 1
    assert follows[0] == counts[0]
    assert follows[1] == 0
    assert 30 <= counts[0] <= 90  # of 120 draws, within 5.5 standard deviations
    with pytest.raises(PenjingError, match="no text has"):
        SentencePairs(["short"], tokenizer, rows=1, length=43)
