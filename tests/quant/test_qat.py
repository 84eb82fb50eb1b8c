"""Quantization-aware training: begins at the child's codes, moves codes against the gradient, scales stay positive."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from penjing.errors import PenjingError
from penjing.format.scales import pack_scales
from penjing.quant import qat, rtn, technique, tuning
from penjing.tensors.scales import stored


def make(bits: int = 3, scale_bits: int = 16, **spec: float) -> tuple[qat.Weight, object, torch.Tensor]:
    weight_OI = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    quantized = rtn.quantize(rtn.Spec(bits=bits, group_size=8), weight_OI)
    scale_ON = stored(quantized.scale_ON.float(), scale_bits).half()
    quantized = dataclasses.replace(quantized, scale_ON=scale_ON, scale_bits=scale_bits)
    return qat.tunable(qat.Spec(**spec), quantized, weight_OI), quantized, weight_OI


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
def test_it_begins_as_the_child_is(bits, start):
    weight, quantized, weight_OI = make(bits, start=start)
    assert torch.equal(weight(), quantized.dequantize())
    assert torch.equal(weight.quantized().code_ONG, quantized.code_ONG)
    assert torch.equal(weight.quantized().scale_ON, quantized.scale_ON)
    parent_ONG = weight_OI.view(4, 4, 8) / quantized.scale_ON.float().unsqueeze(-1)
    away = (weight.latent_ONG - parent_ONG).abs().max()
    assert away < 0.02 if start == 1.0 else away > 0.1


@pytest.mark.parametrize("scale_bits", [16, 8])
def test_codes_follow_the_gradient_to_another_weight(scale_bits):
    weight, _, weight_OI = make(3, scale_bits)
    wanted_OI = weight_OI.flip(0)
    optimizer = torch.optim.Adam(weight.parameters(), lr=0.05)
    losses = []
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
        weight.confine_()
        loss = (weight() - wanted_OI).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # straight through, a latent ends at the border of two codes, and at random with either: on average twice the error
    # of the nearer one (1/6 of a squared step for 1/12)
    direct = (rtn.quantize(rtn.Spec(bits=3, group_size=8), wanted_OI).dequantize() - wanted_OI).square().mean()
    assert losses[-1] < 2.5 * direct < 0.1 * losses[0]
    assert torch.equal(weight.quantized().dequantize(), weight().detach())
    assert weight.quantized().scale_ON.isfinite().all()
    if scale_bits == 8:
        pack_scales(weight.quantized().scale_ON.numpy())  # they fit


def test_the_weights_given_are_left_alone():
    weight, quantized, weight_OI = make()
    before = weight_OI.clone(), quantized.code_ONG.clone(), quantized.scale_ON.clone()
    weight().sum().backward()
    with torch.no_grad():
        for parameter in weight.parameters():
            parameter += 3
    weight.confine_()
    assert all(
        torch.equal(*pair) for pair in zip(before, (weight_OI, quantized.code_ONG, quantized.scale_ON), strict=True)
    )


def test_what_trains_does_not_quantize_and_the_reverse():
    with pytest.raises(PenjingError, match="is not a method") as caught:
        technique("qat")
    assert "penjing tune" in caught.value.attempt
    with pytest.raises(PenjingError, match="is not a method"):
        tuning("rtn")
    assert tuning("qat") is qat
