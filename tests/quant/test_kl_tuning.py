"""Tuning of scales: codes stay, scales and zero points move, and what is stored is what was simulated."""

from __future__ import annotations

import pytest
import torch

from penjing.quant import kl_tuning, rtn


def make(symmetric: bool, bits: int = 4) -> tuple[kl_tuning.Weight, object, torch.Tensor]:
    weight_OI = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) + 0.3
    quantized = rtn.quantize(rtn.Spec(bits=bits, group_size=8, symmetric=symmetric), weight_OI)
    return kl_tuning.tunable(kl_tuning.Spec(), quantized, weight_OI), quantized, weight_OI


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 8])
def test_it_begins_as_the_child_is(symmetric, bits):
    weight, quantized, _ = make(symmetric, bits)
    assert torch.equal(weight(), quantized.dequantize())
    assert torch.equal(weight.quantized().dequantize(), quantized.dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_surrounds_the_codes_is_learned(symmetric):
    weight, quantized, weight_OI = make(symmetric)
    wanted_OI = 1.3 * weight_OI + (0.0 if symmetric else 0.5)
    optimizer = torch.optim.Adam(weight.parameters(), lr=0.01)
    first = float((weight() - wanted_OI).square().mean())
    for _ in range(100):
        loss = (weight() - wanted_OI).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = weight.quantized()
    assert float((found.dequantize() - wanted_OI).square().mean()) < 0.2 * first
    assert torch.equal(found.code_ONG, quantized.code_ONG)
    assert torch.equal(found.dequantize(), weight().detach())
    if not symmetric:
        assert not torch.equal(found.zero_ON, quantized.zero_ON)
        assert found.zero_ON.max() <= 15


def test_a_zero_point_beyond_its_bits_is_clamped():
    weight, _, _ = make(symmetric=False)
    with torch.no_grad():
        weight.shift_ON += 100.0
    assert (weight.quantized().zero_ON == 15).all()
    assert torch.equal(weight.quantized().dequantize(), weight().detach())
