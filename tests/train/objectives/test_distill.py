"""Distillation in chunks is the textbook KL, with its gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM

from penjing.errors import PenjingError
from penjing.train import vocabulary
from penjing.train.batch import document, pack
from penjing.train.objectives.distill import Objective


def model_of(seed: int, vocab_size: int = 67, hidden_size: int = 24):
    torch.manual_seed(seed)
    settings = {"intermediate_size": 28, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, hidden_size=hidden_size, **settings))


@pytest.mark.parametrize(("temperature", "hard"), [(1.0, 0.0), (2.0, 0.0), (0.5, 0.25), (3.0, 1.0)])
def test_loss_and_gradients_are_the_textbooks(temperature, hard, monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", 4 * 2 * 67)
    student, teacher = model_of(0), model_of(1, hidden_size=32)
    token_1T = torch.randint(67, (1, 9), generator=torch.Generator().manual_seed(1))
    found = Objective(teacher=teacher, temperature=temperature, hard=hard)(
        student, pack([document(token_1T[0].numpy())])
    )
    found.total.backward()
    grads = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    logit_TV = student(token_1T).logits[0, :-1]
    with torch.no_grad():
        wanted_TV = F.softmax(teacher(token_1T).logits[0, :-1] / temperature, dim=-1)
    soft = F.kl_div(F.log_softmax(logit_TV / temperature, dim=-1), wanted_TV, reduction="sum") * temperature**2
    wanted = (1 - hard) * soft + hard * F.cross_entropy(logit_TV, token_1T[0, 1:], reduction="sum")
    wanted.backward()
    assert found.total.item() == pytest.approx(wanted.item(), rel=1e-5)
    for name, parameter in student.named_parameters():
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(grads[name], parameter.grad, rtol=0, atol=1e-4 * scale + 1e-9, msg=name)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("hard", [0.0, 0.5])
def test_logits_in_bfloat16(hard):
    """As training is where the CPU multiplies bfloat16 faster."""
    student, teacher, batch = model_of(0), model_of(1), pack([document(range(3, 40))])
    objective = Objective(teacher=teacher, hard=hard)
    wanted = objective(student, batch).total.item()
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(student, batch).total
    found.backward()
    assert found.item() == pytest.approx(wanted, rel=0.03)  # several roundings of 2 ** -9
    assert all(bool(p.grad.isfinite().all()) for p in student.parameters())


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    student = model_of(0)
    found = Objective(teacher=model_of(0))(student, pack([document(range(3, 12))]))
    found.total.backward()
    # probabilities of 67 tokens, each off by a few eps
    assert abs(found.total.item()) < 8 * 67 * torch.finfo(torch.float32).eps
    assert max(float(p.grad.abs().max()) for p in student.parameters()) < 1e-5


def test_another_vocabulary_is_an_error():
    with pytest.raises(PenjingError, match="68 tokens"):
        Objective(teacher=model_of(1, vocab_size=68))(model_of(0), pack([document([3, 4])]))


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"hard": 1.5}])
def test_settings_without_meaning_are_an_error(wrong):
    with pytest.raises(PenjingError):
        Objective(teacher=None, **wrong)
