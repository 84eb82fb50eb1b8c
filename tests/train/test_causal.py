"""Attention in blocks is torch's own, within the rounding of bfloat16, and takes its place where it is faster."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from penjing.train import causal

EPSILON = torch.finfo(torch.bfloat16).eps


def _inputs(documents, heads, key_heads, length, size):
    gen = torch.Generator().manual_seed(length)
    shapes = [(documents, heads, length, size), *[(documents, key_heads, length, size)] * 2]
    return [torch.randn(*shape, generator=gen).bfloat16().float().requires_grad_() for shape in shapes]


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize(("documents", "heads", "key_heads", "size"), [(1, 9, 3, 64), (3, 4, 4, 10), (2, 6, 1, 16)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_is_attention(documents, heads, key_heads, length, size, scale):
    inputs = _inputs(documents, heads, key_heads, length, size)
    weight = torch.randn(documents, heads, length, size, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    wanted = scaled_dot_product_attention(*inputs, is_causal=True, scale=scale, enable_gqa=True)
    wanted_grads = torch.autograd.grad((wanted * weight).sum(), inputs)
    found = causal.attention(*inputs, scale).float()
    found_grads = torch.autograd.grad((found * weight).sum(), inputs)
    # weights, and what is multiplied by them, are rounded to 8 bits; a gradient sums over what shares its key
    assert float((found - wanted).detach().abs().max()) <= 4 * EPSILON * float(inputs[2].detach().abs().max())
    for a, b in zip(found_grads, wanted_grads, strict=True):
        # one key has all the weight: nothing depends on scores, and what is left is a difference of rounded numbers
        least = float(weight.norm()) * EPSILON * size**0.5 if length == 1 else 0.0
        assert float((a - b).norm()) <= 4 * EPSILON * float(b.norm()) + least


def test_later_keys_are_not_seen():
    query, key, value = _inputs(1, 2, 1, 130, 8)
    before = causal.attention(query, key, value, None)
    with torch.no_grad():
        key[:, :, 100:], value[:, :, 100:] = 1e4, 1e4
    assert torch.equal(causal.attention(query, key, value, None)[:, :, :100], before[:, :, :100])


def test_it_is_for_bfloat16_on_cpus_without_tiles(monkeypatch):
    query, _, value = _inputs(1, 2, 2, 5, 8)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not causal.is_faster(query, value)
    with torch.autocast("cpu", torch.bfloat16):
        assert causal.is_faster(query, value)
        assert not causal.is_faster(query, value[..., :4])
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        assert not causal.is_faster(query, value)
