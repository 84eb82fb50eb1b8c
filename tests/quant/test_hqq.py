"""Half-quadratic quantization: never worse than its start, deaf to outliers, the same at any magnitude."""

from __future__ import annotations

import pytest
import torch

from penjing.quant import hqq
from penjing.tensors.groups import to_groups

BITS = [2, 3, 4, 5, 6, 8]


def heavy_tailed(rows=16, cols=128):
    generator = torch.Generator().manual_seed(0)
    normal_OI, chi_OI = (torch.randn(rows, cols, generator=generator) for _ in range(2))
    return normal_OI / (0.2 + chi_OI.abs())


def costs(spec, weight_OI, norm):
    """Of each group."""
    error_OI = hqq.quantize(spec, weight_OI).dequantize() - weight_OI
    return to_groups(error_OI, spec.group_size).abs().pow(norm).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [4, 32, 128])
def test_no_group_ends_worse_than_it_began(bits, symmetric, group_size):
    weight_OI = heavy_tailed()
    before = weight_OI.clone()
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    began_ON = costs(hqq.Spec(**settings, turns=0), weight_OI, 0.7)
    ended_ON = costs(hqq.Spec(**settings), weight_OI, 0.7)
    assert (ended_ON <= began_ON).all()
    assert torch.equal(weight_OI, before)
    if bits < 8:
        assert ended_ON.sum() < began_ON.sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_codes_and_zero_points_are_in_range(bits, symmetric):
    for weight_OI in (heavy_tailed(), heavy_tailed().abs() + 5, torch.zeros(2, 64), torch.full((2, 64), -0.7)):
        quantized = hqq.quantize(hqq.Spec(bits=bits, group_size=32, symmetric=symmetric), weight_OI)
        assert int(quantized.code_ONG.max()) < 1 << bits
        assert quantized.scale_ON.isfinite().all()
        assert (quantized.scale_ON != 0).all()
        assert (quantized.zero_ON is None) == symmetric
        assert symmetric or int(quantized.zero_ON.max()) < 1 << bits


@pytest.mark.parametrize("symmetric", [True, False])
def test_magnitude_does_not_matter(symmetric):
    """A power of two scales every float exactly, so the codes are the same."""
    spec = hqq.Spec(bits=3, group_size=32, symmetric=symmetric)
    first, second = (hqq.quantize(spec, heavy_tailed() * factor) for factor in (1.0, 2.0**-6))
    assert torch.equal(first.code_ONG, second.code_ONG)


def test_an_outlier_does_not_take_the_scale_along():
    """All but one weight lie on a grid: most of it is found again, where the start is a little too coarse."""
    code_OI = torch.randint(-8, 8, (8, 64), generator=torch.Generator().manual_seed(1))
    code_OI[:, 1] = -8
    weight_OI = code_OI * 0.0625
    weight_OI[:, 0] = -0.53
    start, end = (
        hqq.quantize(hqq.Spec(bits=4, group_size=64, symmetric=True, turns=turns), weight_OI).dequantize()
        for turns in (0, 20)
    )
    assert (end - weight_OI)[:, 1:].abs().mean() < 0.25 * (start - weight_OI)[:, 1:].abs().mean()
