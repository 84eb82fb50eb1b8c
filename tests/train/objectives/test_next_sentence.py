"""Next-sentence prediction: transformers' loss."""

from __future__ import annotations

import pytest
import torch
from train.bert import bert

from penjing.train.batch import document, pack, stack
from penjing.train.objectives.next_sentence import Objective, parts
from penjing.train.padded import padded

PAIRS = [([1, 7, 8, 2, 9, 2], 0), ([1, 7, 2, 9, 10, 11, 2], 1), ([1, 5, 2, 6, 2], 1)]


def test_loss_is_that_of_transformers():
    model = bert("NextSentencePrediction")
    batch = stack([pack([document(tokens, label=label)]) for tokens, label in PAIRS])
    documents = padded(batch)
    kinds = parts(documents.token_DT, 2)
    labels = torch.tensor([label for _, label in PAIRS])
    wanted = model(documents.token_DT, attention_mask=documents.real_DT, token_type_ids=kinds, labels=labels).loss
    found = Objective(separator=2)(model, batch)
    assert found.count == 3
    assert float(found.total.detach()) / 3 == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_parts_end_with_their_separator():
    assert parts(torch.tensor([[1, 7, 8, 2, 9, 2, 0]]), 2).tolist() == [[0, 0, 0, 0, 1, 1, 1]]


def test_documents_without_a_label_count_nothing():
    found = Objective(separator=2)(bert("NextSentencePrediction"), pack([document([1, 7, 2, 8, 2])]))
    assert (float(found.total.detach()), found.count) == (0.0, 0.0)
