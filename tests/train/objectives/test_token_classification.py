"""Token classification: transformers' loss, also over documents of other lengths and tokens without a class."""

from __future__ import annotations

import pytest
import torch
from train.bert import bert

from penjing.errors import PenjingError
from penjing.train.batch import document, pack, stack
from penjing.train.objectives.token_classification import Objective, labelled

DOCUMENTS = [([5, 6, 7, 8, 9], [0, 2, None, 1, 1]), ([10], [2]), ([12, 13, 14], [None, 0, 1])]


def test_loss_is_that_of_transformers():
    model = bert("TokenClassification", num_labels=3)
    documents = [labelled(tokens, labels) for tokens, labels in DOCUMENTS]
    found = Objective()(model, stack([pack(documents[:2]), pack(documents[2:])]))
    wanted, count = 0.0, 0
    for tokens, labels in DOCUMENTS:
        label_1T = torch.tensor([[-100 if label is None else label for label in labels]])
        known = int((label_1T >= 0).sum())
        wanted += float(model(torch.tensor([tokens]), labels=label_1T).loss) * known
        count += known
    assert found.count == count == 7
    assert float(found.total.detach()) == pytest.approx(wanted, rel=1e-5)


def test_what_has_no_classes():
    with pytest.raises(PenjingError, match="a class for each token"):
        Objective()(bert("TokenClassification"), pack([document([1, 2, 3])]))
    with pytest.raises(PenjingError, match="2 tokens with 1 classes"):
        labelled([1, 2], [0])
