"""Span corruption: T5's loss as transformers has it; spans that put together again are the document."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from train.conftest import make_tiny

from penjing.errors import PenjingError
from penjing.train.batch import document, pack, stack
from penjing.train.objectives.span_corruption import Objective, corrupted

OBJECTIVE = Objective(first_sentinel=90, num_sentinels=10)


def put_together(seen, said, sentinels):
    spans, key = {}, None
    for token in said.tolist():
        if token in sentinels:
            key = token
            spans[key] = []
        else:
            spans[key].append(token)
    return [t for token in seen.tolist() for t in spans.get(token, [token])]


@pytest.mark.parametrize("size", [2, 3, 7, 20, 100])
@pytest.mark.parametrize("downward", [False, True])
def test_spans_put_together_are_the_document(size, downward):
    token_N = np.random.default_rng(size).integers(0, 50, size)
    settings = Objective(first_sentinel=90, num_sentinels=10, downward=downward, share=0.3)
    seen, said = corrupted(token_N, settings)
    sentinels = set(range(81, 91)) if downward else set(range(90, 100))
    assert put_together(seen, said, sentinels) == token_N.tolist()
    taken = sum(token not in sentinels for token in said.tolist())
    assert taken == min(max(1, round(0.3 * size)), size - 1)
    assert [x.tolist() for x in corrupted(token_N, settings)] == [seen.tolist(), said.tolist()]


def test_loss_of_an_encoder_decoder_is_that_of_transformers():
    torch.manual_seed(0)
    shape = {"d_model": 24, "d_kv": 12, "d_ff": 28, "num_layers": 2, "num_heads": 2}
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=101, decoder_start_token_id=0, **shape)
    )
    model.eval()
    documents = [np.arange(3, 3 + size) for size in (20, 9)]
    found = OBJECTIVE(model, stack([pack([document(one)]) for one in documents]))
    wanted, count = 0.0, 0
    for one in documents:
        seen, said = (torch.from_numpy(part)[None] for part in corrupted(one, OBJECTIVE))
        wanted += float(model(seen, labels=said).loss) * said.numel()
        count += said.numel()
    assert found.count == count
    assert float(found.total.detach()) == pytest.approx(wanted, rel=1e-5)


def test_loss_of_a_decoder_is_that_of_transformers():
    model = make_tiny().eval()
    token_N = np.arange(3, 23)
    seen, said = corrupted(token_N, OBJECTIVE)
    whole = torch.from_numpy(np.concatenate([seen, said]))[None]
    label = whole.clone()
    label[0, : len(seen)] = -100
    found = OBJECTIVE(model, pack([document(token_N), document([5])]))
    assert found.count == len(said)
    assert float(found.total.detach()) / found.count == pytest.approx(float(model(whole, labels=label).loss), rel=1e-5)


def test_impossible_shares():
    with pytest.raises(PenjingError, match="cannot take out"):
        corrupted(np.arange(9), Objective(first_sentinel=90, share=1.0))
