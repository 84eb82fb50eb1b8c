"""BERT's two losses: what transformers' BertForPreTraining adds up; accuracies of a model that learnt its text."""

from __future__ import annotations

import pytest
import torch
from train.bert import VOCABULARY, bert

from penjing.train.batch import document, pack, stack
from penjing.train.objectives import masked_lm, next_sentence
from penjing.train.objectives.mlm_nsp import Objective, accuracies
from penjing.train.padded import padded

OBJECTIVE = Objective(mask=3, separator=2, num_special=4)


def pairs():
    random = torch.Generator().manual_seed(0)
    parts = torch.randint(4, VOCABULARY, (6, 2, 20), generator=random).tolist()
    return stack([pack([document([1, *a, 2, *b, 2], label=at % 2)]) for at, (a, b) in enumerate(parts)])


def test_loss_is_that_of_transformers():
    model, batch = bert("PreTraining"), pairs()
    documents = padded(batch)
    token_DT, chosen_DT = masked_lm.masked(documents, masked_lm.Objective(mask=3, num_special=4), VOCABULARY)
    wanted = model(
        token_DT,
        attention_mask=documents.real_DT,
        token_type_ids=next_sentence.parts(documents.token_DT, 2),
        labels=documents.token_DT.masked_fill(~chosen_DT, -100),
        next_sentence_label=documents.label_D,
    ).loss
    found = OBJECTIVE(model, batch)
    assert found.count == 6
    assert float(found.total.detach()) / 6 == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_accuracies_rise_to_one_on_what_was_learnt_by_heart():
    model, batch = bert("PreTraining"), pairs()
    before = accuracies(OBJECTIVE, model, [batch])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        OBJECTIVE(model, batch).total.backward()
        optimizer.step()
    after = accuracies(OBJECTIVE, model, [batch])
    assert before["masked_accuracy"] < 0.3
    assert after == {"masked_accuracy": 1.0, "order_accuracy": 1.0}
