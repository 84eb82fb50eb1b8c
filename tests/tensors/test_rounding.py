"""Rounding finds the way of each kind of levels."""

from __future__ import annotations

import pytest
import torch

from penjing.format.pack import LEVELS
from penjing.format.scales import SCALE_BITS, pack_scales
from penjing.tensors.books import first_book
from penjing.tensors.rounding import rounded


@pytest.mark.parametrize("scale_bits", SCALE_BITS)
@pytest.mark.parametrize("levels", LEVELS)
def test_every_kind_of_levels_comes_as_asked(levels, scale_bits):
    weight_OI = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    found = rounded(weight_OI, torch.ones(64), bits=2, group_size=32, levels=levels, scale_bits=scale_bits)
    assert (found.levels, found.bits, found.scale_ON.shape) == (levels, 2, (6, 2))
    assert found.scale_bits == scale_bits
    if scale_bits == 8:
        pack_scales(found.scale_ON.numpy())  # they fit
    assert (found.dequantize() - weight_OI).square().mean() < 0.25  # of a variance of 1


def test_a_book_that_is_given_is_used():
    weight_OI = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    settings = {"bits": 3, "group_size": 32, "levels": "book"}
    assert torch.equal(rounded(weight_OI, torch.ones(64), **settings, book_K=first_book(3)).book_K, first_book(3))
    learned_K = rounded(weight_OI**3, torch.ones(64), **settings).book_K
    assert not torch.equal(learned_K, first_book(3))


def test_zero_points_only_where_they_are_asked_for():
    weight_OI = torch.rand(4, 32, generator=torch.Generator().manual_seed(0)) + 1
    with_zeros, without = (
        rounded(weight_OI, torch.ones(32), bits=4, group_size=16, symmetric=symmetric) for symmetric in (False, True)
    )
    assert without.zero_ON is None
    assert with_zeros.zero_ON is not None
