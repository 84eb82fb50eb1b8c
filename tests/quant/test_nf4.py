"""Normal float: QLoRA's values, and every weight at the entry nearest to it."""

from __future__ import annotations

import pytest
import torch

from penjing.quant import nf4
from penjing.tensors.books import normal_book

#: arXiv:2305.14314, appendix E
PUBLISHED = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip


def test_the_published_values_rounded_to_8_bits():
    assert torch.equal(normal_book(4), (torch.tensor(PUBLISHED) * 127).round().to(torch.int8))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_weight_takes_its_nearest_entry(bits):
    weight_OI = torch.randn(7, 24, generator=torch.Generator().manual_seed(bits))
    weight_OI[0, :12] = 0
    found = nf4.quantize(nf4.Spec(bits=bits, group_size=12), weight_OI, torch.ones(24))
    assert len(found.book_K) == 1 << bits
    assert 0 in found.book_K
    choice_ONGK = found.scale_ON.float()[..., None, None] * found.book_K.float()
    least_ONG = (choice_ONGK - weight_OI.reshape(7, 2, 12, 1)).abs().amin(-1)
    error_ONG = (found.dequantize() - weight_OI).abs().reshape(7, 2, 12)
    # two entries may be equally near up to rounding
    assert (error_ONG <= least_ONG + 4 * torch.finfo(torch.float32).eps * weight_OI.abs().max()).all()
    assert (error_ONG[0, 0] == 0).all()


def test_a_book_that_is_given_is_kept():
    book_K = torch.tensor([-127, -1, 1, 100], dtype=torch.int8)
    found = nf4.quantize(nf4.Spec(bits=2, group_size=4), torch.randn(2, 4), torch.ones(4), book_K=book_K)
    assert torch.equal(found.book_K, book_K)
