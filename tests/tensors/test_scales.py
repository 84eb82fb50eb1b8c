"""The search for scales: better than its starts, importance chooses, whatever the weights."""

import numpy as np
import pytest
import torch

from penjing.format.scales import pack_scales, unpack_scales
from penjing.tensors.groups import to_groups
from penjing.tensors.scales import covering, least_squares, search, steps, stored


def weights(rows=16, cols=64):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_group_is_worse_than_at_the_scale_that_covers_it(bits, symmetric):
    weight_ONG = to_groups(weights(), 32)
    found = search(weights(), torch.ones(64), bits=bits, group_size=32, symmetric=symmetric)
    scale_ON, zero_ON = covering(weight_ONG, bits=bits, symmetric=symmetric)
    plain_ONG = steps(weight_ONG, scale_ON, zero_ON, bits) * scale_ON.unsqueeze(-1)
    found_ON = to_groups(found.dequantize() - weights(), 32).square().sum(-1)
    assert (found_ON <= (plain_ONG - weight_ONG).square().sum(-1) * (1 + 1e-5)).all()


def test_what_matters_is_kept_better():
    importance_I = torch.ones(64)
    importance_I[::4] = 100.0
    even, weighted = (
        search(weights(), each_I, bits=3, group_size=32, symmetric=True).dequantize() - weights()
        for each_I in (torch.ones(64), importance_I)
    )
    assert weighted[:, ::4].square().sum() < 0.8 * even[:, ::4].square().sum()


def test_least_squares_has_no_error_along_its_steps():
    weight_ONG = to_groups(weights(), 32)
    step_ONG = (weight_ONG * 3).round()
    scale_ON = least_squares(weight_ONG, step_ONG, torch.ones(16, 2))
    left_ON = ((weight_ONG - step_ONG * scale_ON.unsqueeze(-1)) * step_ONG).sum(-1)
    moment_ON = step_ONG.square().sum(-1)
    assert (left_ON.abs() <= moment_ON * scale_ON * 2.0**-11).all()  # float16 has 11 bits
    assert torch.equal(
        least_squares(weight_ONG, torch.zeros_like(step_ONG), torch.full((16, 2), 0.5)), torch.full((16, 2), 0.5)
    )


@pytest.mark.parametrize("scale_bits", [16, 8])
def test_stored_is_never_zero(scale_bits):
    assert (stored(torch.tensor([0.0, 1e-12, -1e-12]), scale_bits) != 0).all()


def test_of_eight_bits_the_nearest_is_stored():
    every = torch.from_numpy(unpack_scales(np.arange(1, 128, dtype=np.uint8))).float()  # 0 is no scale
    wanted = torch.cat([every, (every[1:] + every[:-1]) / 2 * 1.02, torch.tensor([1e-9, 3.0, 7e4])])
    nearest = every[(wanted[:, None] - every).abs().argmin(1)]
    for sign in (1, -1):
        assert torch.equal(stored(sign * wanted, 8), sign * nearest)
    middle = torch.tensor([1 + 1 / 16, 1 + 3 / 16])
    assert torch.equal(stored(middle, 8), torch.tensor([1.0, 1.25]))  # of two as near, the even one


def test_small_scales_cost_next_to_nothing_at_few_bits():
    weight_OI = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) / 16
    for bits, most in ((2, 1.02), (3, 1.06)):
        wide, small = (
            search(weight_OI, torch.ones(256), bits=bits, group_size=64, symmetric=True, scale_bits=scale_bits)
            for scale_bits in (16, 8)
        )
        pack_scales(small.scale_ON.numpy())  # they fit
        errors = [float((found.dequantize() - weight_OI).square().sum()) for found in (wide, small)]
        assert errors[1] < most * errors[0]
