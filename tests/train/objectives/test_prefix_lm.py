"""Prefix LM: transformers' loss over what follows each prefix, which is the same when asked again."""

from __future__ import annotations

import pytest
import torch
from train.conftest import make_documents, make_tiny

from penjing.train.batch import document, pack, stack
from penjing.train.objectives.prefix_lm import Objective, prefixed


def test_loss_is_that_of_transformers_after_the_prefix():
    model = make_tiny().eval()
    batch = pack([document(range(3, 23))])
    weight_T = prefixed(batch, Objective()).weight_BT[0]
    label_1T = batch.token_BT.masked_fill(weight_T == 0, -100)
    wanted = model(batch.token_BT, labels=label_1T).loss
    found = Objective()(model, batch)
    assert 0 < found.count < 19
    assert float(found.total.detach()) / found.count == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_prefixes_are_single_within_their_shares_and_repeat():
    documents = make_documents(60, longest=40)
    batch = stack([pack(documents[:30]), pack(documents[30:])])
    found = prefixed(batch, Objective(shortest=0.25, longest=0.5))
    assert torch.equal(found.weight_BT, prefixed(batch, Objective(shortest=0.25, longest=0.5)).weight_BT)
    sizes = set()
    for row in range(2):
        for number in range(30):
            weight_N = found.weight_BT[row][batch.document_BT[row] == number]
            prefix = int((weight_N == 0).sum())
            assert torch.equal(weight_N, (torch.arange(len(weight_N)) >= prefix).float())
            assert round(0.25 * len(weight_N)) <= max(prefix, 1) <= max(1, round(0.5 * len(weight_N)))
            sizes.add(prefix / len(weight_N))
    assert len(sizes) > 10
    assert not torch.equal(batch.weight_BT, found.weight_BT)
