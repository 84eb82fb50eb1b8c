"""ORPO: equations 4 to 7 of its paper, written out, with its gradients."""

from __future__ import annotations

import pytest
import torch
from train.conftest import make_tiny
from train.preferences import PAIRS, pairs, slow_log_probability

from penjing.train.batch import document, pack
from penjing.train.objectives.orpo import Objective


def slow_orpo(model, weight):
    total = 0.0
    for prompt, chosen, rejected in PAIRS:
        p = [(slow_log_probability(model, prompt, a) / len(a)).exp() for a in (chosen, rejected)]
        odds_ratio = (p[0] / (1 - p[0])) / (p[1] / (1 - p[1]))
        total = total - p[0].log() - weight * torch.sigmoid(odds_ratio.log()).log()
    return total


def test_loss_and_gradients_are_the_papers():
    model = make_tiny()
    found = Objective(weight=0.7)(model, pairs())
    found.total.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    wanted = slow_orpo(model, 0.7)
    wanted.backward()
    assert found.count == 3
    assert float(found.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    for name, p in model.named_parameters():
        # float32 sums of at most 101 terms, through two layers
        torch.testing.assert_close(grads[name], p.grad, rtol=0, atol=1e-4 * float(p.grad.abs().max()) + 1e-9, msg=name)


def test_a_certain_answer_has_finite_odds():
    model = make_tiny()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    found = Objective()(model, pack([document([1, 2], answer_from=9), document([1, 3])]))
    assert torch.isfinite(found.total)
