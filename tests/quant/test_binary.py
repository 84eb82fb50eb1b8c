"""Binary: signs are kept, and no other scale costs less."""

from __future__ import annotations

import torch

from penjing.quant import binary


def test_signs_and_the_best_scale():
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(5, 12, generator=generator)
    importance_I = torch.rand(12, generator=generator) + 0.1
    found = binary.quantize(binary.Spec(group_size=4), weight_OI, importance_I)
    value_OI = found.dequantize()
    assert torch.equal(value_OI.sign(), weight_OI.sign())

    def cost(factor):
        return (importance_I * (factor * value_OI - weight_OI).square()).reshape(5, 3, 4).sum(-1)

    assert (cost(1.0) <= cost(1.01)).all()
    assert (cost(1.0) <= cost(0.99)).all()


def test_an_empty_group_has_a_scale():
    found = binary.quantize(binary.Spec(group_size=4), torch.zeros(1, 4), torch.zeros(4))
    assert found.dequantize().abs().max() <= 2.0**-24
