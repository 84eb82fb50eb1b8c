"""DPO: equation 7 of its paper, written out, with its gradients; against a reference model and without an adapter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import logsigmoid
from train.conftest import make_tiny
from train.preferences import PAIRS, pairs, slow_log_probability

from penjing.errors import PenjingError
from penjing.train import vocabulary
from penjing.train.batch import document, pack
from penjing.train.objectives.dpo import Objective


def moved(model, seed=1):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=random))
    return model


def slow_dpo(model, reference, beta, smoothing):
    total = 0.0
    for prompt, chosen, rejected in PAIRS:
        gains = []
        for answer in (chosen, rejected):
            with torch.no_grad():
                before = slow_log_probability(reference, prompt, answer)
            gains.append(slow_log_probability(model, prompt, answer) - before)
        margin = beta * (gains[0] - gains[1])
        total = total - (1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("chunk", [2, 1000])
def test_loss_and_gradients_are_the_papers(smoothing, chunk, monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", 4 * chunk * 101)
    reference, model = make_tiny().eval(), moved(make_tiny()).eval()
    found = Objective(reference=reference, beta=0.5, smoothing=smoothing)(model, pairs())
    found.total.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    wanted = slow_dpo(model, reference, 0.5, smoothing)
    wanted.backward()
    assert found.count == 3
    assert float(found.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    for name, p in model.named_parameters():
        # float32 sums of at most 101 terms, through two layers
        torch.testing.assert_close(grads[name], p.grad, rtol=0, atol=1e-4 * float(p.grad.abs().max()) + 1e-9, msg=name)
    assert all(p.grad is None for p in reference.parameters())


def test_without_a_reference_the_adapter_is_taken_off():
    peft = pytest.importorskip("peft")
    base = make_tiny()
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).train()
    found = Objective()(model, pairs())
    wanted = slow_dpo(model.eval(), make_tiny().eval(), 0.1, 0.0)
    assert float(found.total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert float(found.total.detach()) != pytest.approx(3 * 0.6931472, rel=1e-6)


def test_what_cannot_be_compared():
    with pytest.raises(PenjingError, match="no reference"):
        Objective()(make_tiny(), pairs())
    with pytest.raises(PenjingError, match="not pairs"):
        Objective(reference=make_tiny())(make_tiny(), pack([document([1, 2])]))
