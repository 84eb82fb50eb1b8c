"""Contrastive pairs: a slow InfoNCE over embeddings of documents run one at a time."""

from __future__ import annotations

import math

import pytest
import torch
from train.bert import bert
from train.conftest import make_tiny

from penjing.errors import PenjingError
from penjing.train.batch import document, pack
from penjing.train.objectives.contrastive import Objective, embeddings

TOKENS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14], [15, 16], [17, 18, 19]]


def slow_embedding(model, tokens):
    with torch.no_grad():
        hidden_NH = model.base_model(torch.tensor([tokens])).last_hidden_state[0]
    mean_H = hidden_NH.mean(0)
    return mean_H / mean_H.norm()


def slow_info_nce(queries, candidates, temperature):
    total = 0.0
    for at, query in enumerate(queries):
        scores = [float(query @ candidate) / temperature for candidate in candidates]
        total -= scores[at] - math.log(sum(math.exp(score) for score in scores))
    return total


@pytest.mark.parametrize("make", [lambda: make_tiny().eval(), lambda: bert("MaskedLM")], ids=["llama", "bert"])
def test_loss_is_info_nce(make):
    model = make()
    batch = pack([document(tokens) for tokens in TOKENS])
    embedding_DH = [slow_embedding(model, tokens) for tokens in TOKENS]
    # float32 means of a few hidden states
    torch.testing.assert_close(embeddings(model, batch).detach(), torch.stack(embedding_DH), rtol=0, atol=1e-5)
    one_way = slow_info_nce(embedding_DH[::2], embedding_DH[1::2], 0.1)
    back = slow_info_nce(embedding_DH[1::2], embedding_DH[::2], 0.1)
    found = Objective(temperature=0.1)(model, batch)
    assert found.count == 3
    assert float(found.total.detach()) == pytest.approx((one_way + back) / 2, rel=1e-4)
    triples = Objective(temperature=0.1, group=3, symmetric=False)(model, batch)
    candidates = [*embedding_DH[1::3], *embedding_DH[2::3]]
    assert float(triples.total.detach()) == pytest.approx(slow_info_nce(embedding_DH[::3], candidates, 0.1), rel=1e-4)


def test_half_a_pair_is_an_error():
    with pytest.raises(PenjingError, match="not groups of 2"):
        Objective()(make_tiny(), pack([document([1])]))
