"""Books: levels are those of the nearest entries, and learning from a first book only makes it better."""

from __future__ import annotations

import pytest
import torch

from penjing.tensors.books import first_book, learned, level, nearest, normal_book, search


@pytest.mark.parametrize("num_levels", [2, 3, 4, 16])
def test_levels_are_those_that_bucketize_finds(num_levels):
    generator = torch.Generator().manual_seed(num_levels)
    level_K = torch.randperm(255, generator=generator)[:num_levels].sub(127).sort().values.float()
    border_K = (level_K[1:] + level_K[:-1]) / 2
    value = torch.cat([200 * torch.randn(500, generator=generator), border_K, torch.tensor([-1e30, 1e30])])
    assert torch.equal(level(value, border_K, level_K), level_K[torch.bucketize(value, border_K)])
    assert torch.equal(nearest(value, level_K), torch.bucketize(value, border_K))
    assert level(torch.empty(0, 3), border_K, level_K).shape == (0, 3)


def cost(weight_OI, book_K, bits, group_size):
    found = search(weight_OI, torch.ones(weight_OI.shape[1]), book_K, bits=bits, group_size=group_size)
    return float((found.dequantize() - weight_OI).square().mean())


@pytest.mark.parametrize("group_size", [32, 64, 192])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_first_book_serves_normal_weights_as_well_as_one_that_is_learned(bits, group_size):
    weight_OI = torch.randn(300, 384, generator=torch.Generator().manual_seed(bits))
    own_K = learned(weight_OI, torch.ones(384), first_book(bits), group_size=group_size, turns=8)
    first, own, even_shares = (
        cost(weight_OI, book_K, bits, group_size) for book_K in (first_book(bits), own_K, normal_book(bits))
    )
    assert own <= first <= 1.05 * own
    assert first < 0.95 * even_shares
