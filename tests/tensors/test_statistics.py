"""Importance against what it stands for: the Fisher of small models, and KL measured by really changing weights."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from penjing.tensors.statistics import Importance, importances


def tiny_llama(*, tied):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tokens(windows=4, length=40):
    return torch.randint(0, 37, (windows, length), generator=torch.Generator().manual_seed(1))


def test_every_weight_has_one_entry_of_its_shape():
    for tied in (False, True):
        model = tiny_llama(tied=tied)
        found = importances(model, tokens())
        expected = {n: p.shape for n, p in model.named_parameters() if p.dim() == 2}
        assert {n: (v.output_KO.shape[1], v.input_KI.shape[1]) for n, v in found.items()} == expected
        assert found["model.embed_tokens.weight"].output_KO.shape[0] == (2 if tied else 1)
        assert all((v.output_KO >= 0).all() and (v.input_KI >= 0).all() for v in found.values())


def test_the_model_is_left_as_it_was():
    model = tiny_llama(tied=True)
    before = {n: p.clone() for n, p in model.named_parameters()}
    importances(model, tokens(1))
    assert all(p.requires_grad and p.grad is None and torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_same_seed_same_numbers():
    model = tiny_llama(tied=True)
    first, second = importances(model, tokens(), seed=3), importances(model, tokens(), seed=3)
    assert all(torch.equal(first[n].output_KO, second[n].output_KO) for n in first)


def test_it_is_the_square_of_the_windows_own_gradient():
    """Row and column sums against autograd's weight gradients, one window at a time."""
    model = tiny_llama(tied=False)
    found = importances(model, tokens(3), seed=5)
    generator = torch.Generator().manual_seed(5)
    names = ("model.layers.1.self_attn.v_proj.weight", "model.layers.0.mlp.down_proj.weight", "lm_head.weight")
    squares = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
    for token_T in tokens(3):
        model.zero_grad()
        logit_TV = model(token_T[None]).logits[0]
        label_T = torch.multinomial(logit_TV.detach().softmax(-1), 1, generator=generator)[:, 0]
        nn.functional.cross_entropy(logit_TV, label_T, reduction="sum").backward()
        for name in names:
            squares[name] += model.get_parameter(name).grad.square()
    for name, square_OI in squares.items():
        row_O = square_OI.sum(1) / tokens(3).numel()
        assert torch.allclose(found[name].output_KO[0], row_O.clamp_min(0.01 * float(row_O.mean())), rtol=1e-4)
        assert torch.allclose(found[name].input_KI[0], square_OI.sum(0) / square_OI.sum(), rtol=1e-4)


def test_rows_of_tokens_never_seen_still_count():
    found = importances(tiny_llama(tied=False), tokens() % 5)["model.embed_tokens.weight"]
    assert (found.output_KO[0, 5:] > 0).all()
    assert found.output_KO[0, 5:].max() < found.output_KO[0, :5].min()


@pytest.mark.parametrize("part", ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj", "lm_head"])
def test_it_tells_the_measured_kl(part):
    model = tiny_llama(tied=False)
    window = tokens(8, 64)
    importance = importances(model, window.repeat(8, 1))[f"{part}.weight"]
    with torch.no_grad():
        before = model(window).logits.log_softmax(-1)
        weight_OI = model.get_submodule(part).weight
        kls, told = [], []
        for seed in range(24):  # errors of either sign at random: what is off the diagonal averages out
            noise_OI = 1e-2 * torch.randn(weight_OI.shape, generator=torch.Generator().manual_seed(seed))
            weight_OI += noise_OI
            after = model(window).logits.log_softmax(-1)
            weight_OI -= noise_OI
            kls.append((before.exp() * (before - after)).sum(-1).mean())
            told.append(importance.loss(noise_OI))
    assert 0.6 < sum(told) / float(sum(kls)) < 1.6


def test_loss_of_rows_adds_up_to_the_loss_of_all():
    generator = torch.Generator().manual_seed(0)
    importance = Importance(torch.rand(2, 10, generator=generator), torch.rand(2, 6, generator=generator))
    error_OI = torch.randn(10, 6, generator=generator)
    rows = [slice(0, 3), slice(3, 10)]
    expected = 0.5 * float((importance.output_KO.T @ importance.input_KI * error_OI.square()).sum())
    assert importance.loss(error_OI) == pytest.approx(expected, rel=1e-5)
    assert sum(importance.loss(error_OI[r], r) for r in rows) == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(importance.mean_input_I(), (importance.output_KO.T @ importance.input_KI).mean(0), rtol=1e-5)


def hessian_by_autograd(model, name, num_windows, *, seed, lookup=False):
    """Of windows and of tokens, from gradients that autograd keeps."""
    module, seen = model.get_submodule(name), {}
    size = module.weight.shape[1]
    wanted_II = torch.zeros(size, size)
    generator = torch.Generator().manual_seed(seed)

    def keep(_, inputs, output):
        output.retain_grad()
        seen.update(x=inputs[0], y=output)

    handle = module.register_forward_hook(keep)
    for token_T in tokens(num_windows):
        model.zero_grad()
        logit_TV = model(token_T[None]).logits[0]
        label_T = torch.multinomial(logit_TV.detach().softmax(-1), 1, generator=generator)[:, 0]
        nn.functional.cross_entropy(logit_TV, label_T, reduction="sum").backward()
        gradient_TO = seen["y"].grad[0]
        felt_TI = gradient_TO if lookup else seen["x"][0].detach() * gradient_TO.norm(dim=1, keepdim=True)
        wanted_II += module.weight.grad.T @ module.weight.grad + felt_TI.T @ felt_TI
    handle.remove()
    return wanted_II


@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj", "model.embed_tokens", "lm_head"])
def test_the_hessian_is_of_windows_and_of_tokens(name):
    """Against autograd's own gradients; absent unless asked for."""
    model = tiny_llama(tied=False)
    found = importances(model, tokens(2), hessians=True, seed=5)
    wanted_II = hessian_by_autograd(model, name, 2, seed=5, lookup=name == "model.embed_tokens")
    assert torch.allclose(found[f"{name}.weight"].hessian_II, wanted_II, rtol=1e-4, atol=1e-6 * float(wanted_II.max()))
    assert importances(model, tokens(1))[f"{name}.weight"].hessian_II is None


def test_a_tied_matrix_has_the_hessians_of_both_its_uses():
    tied, apart = tiny_llama(tied=True), tiny_llama(tied=False)
    apart.load_state_dict(tied.state_dict())
    one, two = (importances(model, tokens(2), hessians=True, seed=5) for model in (tied, apart))
    both_II = two["model.embed_tokens.weight"].hessian_II + two["lm_head.weight"].hessian_II
    assert torch.allclose(one["model.embed_tokens.weight"].hessian_II, both_II, rtol=1e-4)
