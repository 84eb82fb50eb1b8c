"""The learned book finds values that are there, and serves odd distributions better than one for normal ones."""

from __future__ import annotations

import pytest
import torch

from penjing.quant import kmeans, nf4


def test_four_values_are_found():
    generator = torch.Generator().manual_seed(0)
    value_K = torch.tensor([-1.0, -0.25, 0.125, 0.5])
    weight_OI = value_K[torch.randint(0, 4, (64, 32), generator=generator)]
    weight_OI[:, 0] = -1.0  # every group has its largest
    found = kmeans.quantize(kmeans.Spec(bits=2, group_size=32), weight_OI, torch.ones(32))
    assert (found.dequantize() - weight_OI).abs().max() < 0.5 / 127 * 1.1  # half a step of an entry


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_costs_less_than_normal_float(bits):
    generator = torch.Generator().manual_seed(bits)
    weight_OI = torch.rand(64, 64, generator=generator) ** 2 - 0.2  # skew, nothing like normal
    importance_I = torch.rand(64, generator=generator) + 0.1
    cost = {}
    for method in (kmeans, nf4):
        found = method.quantize(method.Spec(bits=bits, group_size=32), weight_OI, importance_I)
        cost[method] = float((importance_I * (found.dequantize() - weight_OI).square()).sum())
    assert cost[kmeans] < 0.9 * cost[nf4]


def test_entries_rise_even_where_weights_are_all_alike():
    found = kmeans.quantize(kmeans.Spec(bits=4, group_size=4), torch.ones(2, 8), torch.ones(8))
    assert (found.book_K.int().diff() > 0).all()
    assert torch.allclose(found.dequantize(), torch.ones(2, 8), rtol=2**-10)
    empty = kmeans.quantize(kmeans.Spec(bits=4, group_size=4), torch.zeros(2, 8), torch.zeros(8))
    assert empty.dequantize().abs().max() <= 127 * 2.0**-24
