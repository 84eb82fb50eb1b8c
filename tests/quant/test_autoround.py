"""Learned rounding stays within a step of rounding: that is what an offset of half a step allows."""

from __future__ import annotations

import torch

from penjing.quant import autoround


def test_every_code_is_one_of_the_two_neighbours():
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(8, 16, generator=generator)
    inputs = [torch.randn(20, 16, generator=generator) for _ in range(3)]
    spec = autoround.Spec(bits=4, group_size=8, steps=30)

    def forward(changed, x_TH):
        return x_TH @ changed.get("w", weight_OI).T

    found = autoround.quantize_block(
        {"w": spec}, {"w": weight_OI}, {"w": torch.ones(16)}, forward, inputs, [forward({}, x) for x in inputs], 0
    )["w"]
    step_ON1 = found.scale_ON.float().abs().unsqueeze(-1)
    value_ONG = weight_OI.reshape(8, 2, 8) / found.scale_ON.float().unsqueeze(-1)
    inside = (value_ONG >= -8) & (value_ONG <= 7)
    error_ONG = (found.dequantize() - weight_OI).reshape(8, 2, 8).abs() / step_ON1
    assert inside.any()
    assert (error_ONG[inside] <= 1.001).all()
