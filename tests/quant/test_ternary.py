"""Ternary: no other choice of codes and scale of a group costs less."""

from __future__ import annotations

import itertools

import pytest
import torch

from penjing.quant import ternary


def cost(values, weight_G, importance_G):
    return float((importance_G * (values - weight_G).square()).sum())


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    weight_1G = torch.randn(1, 6, generator=generator)
    importance_G = torch.rand(6, generator=generator) ** 3 + 0.01
    found = ternary.quantize(ternary.Spec(group_size=6), weight_1G, importance_G)
    floored_G = importance_G + importance_G.mean() * 1e-3
    best = min(
        cost(scale * step_G, weight_1G[0], floored_G)
        for code in itertools.product((-1.0, 0.0, 1.0), repeat=6)
        if any(code)
        for step_G in [torch.tensor(code)]
        for scale in [(floored_G * step_G * weight_1G[0]).sum() / (floored_G * step_G.square()).sum()]
    )
    # a scale in float16 is off by 2^-11 of itself at most, which costs that squared times what the codes hold
    slack = float((floored_G * weight_1G[0].square()).sum()) * 2.0**-20
    assert cost(found.dequantize()[0], weight_1G[0], floored_G) <= best + slack


def test_edges():
    weight_OI = torch.zeros(3, 8)
    weight_OI[1, 0] = 5.0
    weight_OI[2] = 1e-9  # below what float16 holds
    found = ternary.quantize(ternary.Spec(group_size=4), weight_OI, torch.zeros(8))
    assert found.scale_ON.isfinite().all()
    assert (found.code_ONG <= 2).all()
    assert torch.equal(found.dequantize()[:2], weight_OI[:2])
