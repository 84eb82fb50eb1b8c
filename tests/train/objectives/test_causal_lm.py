"""The loss in chunks is transformers' loss, with its gradients."""

from __future__ import annotations

import pytest
import torch
import transformers

from penjing.train import vocabulary
from penjing.train.batch import document, pack, stack
from penjing.train.objectives.causal_lm import Objective

CONFIG = {
    "vocab_size": 67,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
KINDS = {
    "llama": ("Llama", {}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "granite, which scales logits": ("Granite", {"logits_scaling": 7.0}),
    "gemma, which caps logits": ("Gemma3", {"final_logit_softcapping": 0.5, "head_dim": 12}),
}


def model_of(kind: str):
    name, changes = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
    return getattr(transformers, f"{name}ForCausalLM")(config(**CONFIG, num_key_value_heads=1, **changes))


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_transformers(kind, chunk, monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", 4 * chunk * CONFIG["vocab_size"])
    model = model_of(kind)
    token_BT = torch.randint(67, (3, 11), generator=torch.Generator().manual_seed(1))
    found = Objective()(model, stack([pack([document(row.numpy(), answer_from=4)]) for row in token_BT]))
    (found.total / found.count).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    label_BT = token_BT.clone()
    label_BT[:, :4] = -100
    wanted = model(token_BT, labels=label_BT).loss
    wanted.backward()
    assert found.count == 3 * 7
    assert float(found.total.detach()) / found.count == pytest.approx(float(wanted.detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        # float32 sums of at most 67 terms, passed through two layers
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(grads[name], parameter.grad, rtol=0, atol=1e-4 * scale + 1e-9, msg=name)


def test_a_batch_without_targets_counts_nothing():
    found = Objective()(model_of("llama"), pack([document([5]), document([6, 7], answer_from=9)]))
    assert (float(found.total.detach()), found.count) == (0.0, 0.0)


def test_weights_weigh():
    model, row = model_of("llama"), pack([document([5, 6, 7])])
    row.weight_BT[0, 2] = 0.0
    first = Objective()(model, row)
    row.weight_BT[0, 2] = 2.5
    both = Objective()(model, row)
    row.weight_BT[0, 1] = 0.0
    last = Objective()(model, row)
    assert both.count == 3.5
    assert both.total.item() == pytest.approx(first.total.item() + last.total.item(), rel=1e-5)
