"""Masked LM: transformers' loss on the same masks; masks in the shares that BERT has, the same when asked again."""

from __future__ import annotations

import pytest
import torch
from train.bert import VOCABULARY, bert

from penjing.train.batch import document, pack, stack
from penjing.train.objectives.masked_lm import Objective, masked
from penjing.train.padded import padded

OBJECTIVE = Objective(mask=3, num_special=4)


def batch_of(*sizes: int, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    rows = [torch.randint(4, VOCABULARY, (size,), generator=random).numpy() for size in sizes]
    return stack([pack([document(row)]) for row in rows])


def test_loss_is_that_of_transformers():
    model, batch = bert("MaskedLM"), batch_of(40, 31, 8)
    documents = padded(batch)
    token_DT, chosen_DT = masked(documents, OBJECTIVE, VOCABULARY)
    label_DT = documents.token_DT.masked_fill(~chosen_DT, -100)
    wanted = model(token_DT, attention_mask=documents.real_DT, labels=label_DT).loss
    found = OBJECTIVE(model, batch)
    assert found.count == float(chosen_DT.sum()) > 0
    assert float(found.total.detach()) / found.count == pytest.approx(float(wanted.detach()), rel=1e-5)
    found.total.backward()
    assert all(p.grad is not None for p in model.cls.parameters())


def test_masks_have_berts_shares_and_are_the_same_again():
    documents = padded(batch_of(*[60] * 300))
    token_DT, chosen_DT = masked(documents, OBJECTIVE, VOCABULARY)
    assert torch.equal(masked(documents, OBJECTIVE, VOCABULARY)[0], token_DT)
    chosen = int(chosen_DT.sum())
    # shares of 18000 and of about 2700 draws: within four standard deviations
    assert chosen / 18000 == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 18000) ** 0.5)
    assert float((token_DT == 3).sum()) / chosen == pytest.approx(0.8, abs=4 * (0.8 * 0.2 / chosen) ** 0.5)
    changed = chosen_DT & (token_DT != 3) & (token_DT != documents.token_DT)
    expected = 0.1 * (1 - 1 / (VOCABULARY - 4))  # any token may be the old one
    assert float(changed.sum()) / chosen == pytest.approx(expected, abs=4 * (0.1 * 0.9 / chosen) ** 0.5)
    assert torch.equal(token_DT[~chosen_DT], documents.token_DT[~chosen_DT])
    other = masked(padded(batch_of(*[60] * 300, seed=1)), OBJECTIVE, VOCABULARY)[1]
    assert not torch.equal(other, chosen_DT)


def test_special_tokens_and_filling_are_never_masked():
    batch = stack([pack([document([0, 1, 2, 3] * 9)]), pack([document([0, 1])])])
    found = OBJECTIVE(bert("MaskedLM"), batch)
    assert (float(found.total.detach()), found.count) == (0.0, 0.0)
