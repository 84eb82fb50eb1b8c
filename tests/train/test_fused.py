"""Fused layers are the layers they stand for: values and gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from train.conftest import make_tiny

from penjing.train.fused import _rotates_alike, fused, lora_linear, rms_norm, rotate, silu_product


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def gradients(function, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The value and all gradients under some incoming one."""
    out = function(*inputs)
    incoming = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(9))
    return [out, *torch.autograd.grad(out, inputs, incoming)]


def assert_same(found, wanted, digits: float = 1e-6) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=digits * float(b.abs().max()), check_dtype=False)


@pytest.mark.parametrize("shape", [(1, 3), (3, 7), (2, 3, 16)])
def test_rms_norm(shape):
    def plain(x, weight):
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    inputs = tuple(x.detach().float().requires_grad_() for x in (random(*shape), random(shape[-1], seed=1)))
    assert_same(gradients(lambda x, w: rms_norm(x, w, 1e-5), *inputs), gradients(plain, *inputs))


def test_rotation():
    def half_turned(x):
        return torch.cat((-x[..., 4:], x[..., :4]), -1)

    cos, sin = random(2, 5, 8, seed=3).detach()[:, None], random(2, 5, 8, seed=4).detach()[:, None]
    inputs = random(2, 3, 5, 8), random(2, 1, 5, 8, seed=1)
    found = gradients(lambda q, k: torch.cat(rotate(q, k, cos[:, 0], sin[:, 0]), 1), *inputs)
    wanted = gradients(lambda q, k: torch.cat([x * cos + half_turned(x) * sin for x in (q, k)], 1), *inputs)
    assert_same(found, wanted, 1e-12)


def test_a_part_of_each_head_is_rotated():
    """GPT-NeoX turns a quarter of a head."""
    from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as plain

    cos, sin = random(2, 5, 4, seed=3).detach(), random(2, 5, 4, seed=4).detach()
    inputs = random(2, 3, 5, 16), random(2, 1, 5, 16, seed=1)
    found = gradients(lambda q, k: torch.cat(rotate(q, k, cos, sin), 1), *inputs)
    assert_same(found, gradients(lambda q, k: torch.cat(plain(q, k, cos, sin), 1), *inputs), 1e-12)
    assert _rotates_alike(plain)
    assert not _rotates_alike(lambda q, k, cos, sin: plain(q, k, cos, sin if cos.shape[-1] == 8 else cos))


def test_the_rotation_is_exchanged_and_put_back():
    from transformers.models.llama import modeling_llama

    before = modeling_llama.apply_rotary_pos_emb
    with fused(make_tiny()):
        assert modeling_llama.apply_rotary_pos_emb is rotate
    assert modeling_llama.apply_rotary_pos_emb is before
    assert _rotates_alike(before)
    assert not _rotates_alike(lambda q, k, cos, sin: (q * cos, k * cos))


def test_silu_product():
    inputs = random(3, 5), random(3, 5, seed=1)
    assert_same(gradients(silu_product, *inputs), gradients(lambda g, u: nn.functional.silu(g) * u, *inputs), 1e-12)


class Remade(nn.Module):
    """A frozen layer whose weight is made anew, as of codes."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        super().__init__()
        self._weight_OI, self.bias, self.times = weight_OI, bias_O, 0

    def dequantized(self) -> torch.Tensor:
        self.times += 1
        return self._weight_OI.clone()


@pytest.mark.parametrize("biased", [False, True])
def test_lora_linear(biased):
    weight_OI, bias_O = random(6, 4, seed=3).detach(), random(6, seed=4).detach() if biased else None
    floats, codes = SimpleNamespace(weight=weight_OI, bias=bias_O), Remade(weight_OI, bias_O)

    def plain(x, down, up):
        return nn.functional.linear(x, weight_OI, bias_O) + 0.5 * (x @ down.T @ up.T)

    inputs = random(2, 3, 4), random(2, 4, seed=1), random(6, 2, seed=2)
    wanted = gradients(plain, *inputs)
    for base in (floats, codes):
        found = gradients(lambda x, down, up, base=base: lora_linear(x, base, down, up, 0.5), *inputs)
        assert_same(found, wanted)  # gradients of adapters are float32
    assert codes.times == 2  # forward, and not kept until the way back


def model_gradients(model) -> list[torch.Tensor]:
    token_BT = torch.randint(100, (2, 9), generator=torch.Generator().manual_seed(0))
    out = model(token_BT, labels=token_BT)
    out.loss.backward()
    found = [out.logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        (None, 5 + 2),
        ({}, 5 + 2 + 14),
        ({"use_dora": True}, 5 + 2 + 14),
        ({"lora_dropout": 0.5}, 5 + 2 + 14),
        ({"lora_bias": True}, 5 + 2 + 14),
    ],
    ids=["full", "lora", "dora", "dropout", "biased"],
)
def test_a_model_gives_the_same_with_fused_layers(settings, layers):
    model = make_tiny()
    if settings is not None:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, **settings))
    torch.manual_seed(1)
    wanted = model_gradients(model)
    with fused(model) as count:
        assert count == layers
        torch.manual_seed(1)
        found = model_gradients(model)
    # float32 through two layers
    assert_same(found, wanted, 1e-4)
    assert not any("forward" in vars(module) for module in model.modules())


def test_frozen_matrices_in_bfloat16_may_have_biases_in_float32():
    model = make_tiny()
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            matrix = getattr(layer.mlp, name)
            matrix.weight.data = matrix.weight.data.bfloat16()
            matrix.bias = nn.Parameter(torch.ones(matrix.out_features))
    with fused(model) as count:
        assert count == 5 + 2  # norms and inner layers, as in a model of one type


def test_a_norm_that_is_another_one_stays():
    model = make_tiny()

    class OtherRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(4)), 1e-6

        def forward(self, x):
            return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)

    model.other = OtherRMSNorm()
    with fused(model):
        assert "forward" not in vars(model.other)
        assert "forward" in vars(model.model.norm)


def test_merged_and_disabled_adapters_go_their_own_way():
    model = get_peft_model(make_tiny(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    token_BT = torch.arange(8)[None]
    with torch.no_grad(), fused(model):
        adapted = model(token_BT).logits
        with model.disable_adapter():
            plain = model(token_BT).logits
        assert not torch.allclose(adapted, plain, atol=1e-3)
        torch.testing.assert_close(plain, make_tiny()(token_BT).logits, rtol=0, atol=1e-4)
        model.merge_adapter()
        torch.testing.assert_close(model(token_BT).logits, adapted, rtol=0, atol=1e-4)
