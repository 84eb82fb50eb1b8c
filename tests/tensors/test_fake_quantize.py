"""Fake quantization: rounding gives the nearest value, codes come back, and gradients are those of autograd."""

from __future__ import annotations

import pytest
import torch

from penjing.tensors.fake_quantize import Grid, rounded_weight, scaled_weight, values
from penjing.tensors.groups import Quantized

WAYS = ["uniform-1", "uniform-2", "uniform-3", "uniform-8", "zeros-2", "zeros-4", "ternary-2", "book-2", "book-4"]


def make(way: str, rows: int = 3, groups: int = 2, size: int = 5) -> Quantized:
    kind, bits = way.split("-")
    random = torch.Generator().manual_seed(0)
    most = 3 if kind == "ternary" else 1 << int(bits)
    book_K = torch.randperm(255, generator=random)[:most].sub(127).to(torch.int8) if kind == "book" else None
    return Quantized(
        code_ONG=torch.randint(0, most, (rows, groups, size), generator=random).to(torch.uint8),
        scale_ON=(0.1 + torch.rand(rows, groups, generator=random)).half(),
        zero_ON=torch.randint(0, most, (rows, groups), generator=random).to(torch.uint8) if kind == "zeros" else None,
        bits=int(bits),
        levels=kind if kind in ("ternary", "book") else "uniform",
        book_K=book_K,
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_latent_anywhere_in_the_cell_of_a_code_gives_it_back(way):
    quantized = make(way)
    grid, value_ONG = Grid(quantized), values(quantized)
    far_ONG = 300 * torch.randn(value_ONG.shape, generator=torch.Generator().manual_seed(1))
    for latent_ONG in (value_ONG / grid.unit, grid.inside(far_ONG, value_ONG), grid.inside(-far_ONG, value_ONG)):
        assert torch.equal(grid.nearest(latent_ONG), value_ONG)
        found = grid.quantized(latent_ONG, quantized.scale_ON.float())
        assert torch.equal(found.code_ONG, quantized.code_ONG)
        assert torch.equal(found.scale_ON, quantized.scale_ON)
        assert (found.bits, found.levels, found.zero_ON) == (quantized.bits, quantized.levels, quantized.zero_ON)


@pytest.mark.parametrize("way", WAYS)
def test_the_nearest_of_all_values_is_taken(way):
    quantized = make(way)
    every = [
        make(way, 1, 1, 1).code_ONG.new_full(quantized.code_ONG.shape, code) for code in range(1 << quantized.bits)
    ]
    every = every[: 3 if quantized.levels == "ternary" else len(every)]
    import dataclasses

    value_KONG = torch.stack([values(dataclasses.replace(quantized, code_ONG=code_ONG)) for code_ONG in every])
    latent_ONG = 3 * torch.randn(quantized.code_ONG.shape, generator=torch.Generator().manual_seed(2))
    grid = Grid(quantized)
    found_ONG = grid.nearest(latent_ONG)
    least_ONG = (value_KONG / grid.unit - latent_ONG).abs().amin(0)
    assert torch.equal((found_ONG / grid.unit - latent_ONG).abs(), least_ONG)
    assert (value_KONG == found_ONG).any(0).all()


def test_a_step_is_the_mean_distance_of_values():
    assert [Grid(make(way)).unit for way in ("uniform-2", "uniform-8", "zeros-4", "ternary-2")] == [1.0] * 4
    assert Grid(make("uniform-1")).unit == 2.0
    quantized = make("book-2")
    value_K = quantized.book_K.float()
    assert Grid(quantized).unit == pytest.approx(float(value_K.max() - value_K.min()) / 3)


@pytest.mark.parametrize("way", WAYS)
def test_latents_that_ran_away_are_brought_back_to_where_they_count(way):
    quantized = make(way)
    grid, value_ONG = Grid(quantized), values(quantized)
    latent_ONG = value_ONG.clone()
    latent_ONG[0], latent_ONG[1] = 1e6, -1e6
    nearest_ONG = grid.nearest(latent_ONG)
    grid.confine_(latent_ONG)
    assert torch.equal(grid.nearest(latent_ONG), nearest_ONG)
    # a step of a book's values may be no binary fraction
    assert ((latent_ONG - nearest_ONG / grid.unit).abs() <= 0.5 + 2.0**-20).all()


@pytest.mark.parametrize("way", ["uniform-3", "zeros-4", "ternary-2", "book-2"])
def test_gradients_are_those_of_value_times_scale(way):
    quantized = make(way)
    scale_ON = quantized.scale_ON.float().requires_grad_()
    grid = Grid(quantized)
    latent_ONG = (values(quantized) / grid.unit).requires_grad_()
    weight_OI = rounded_weight(latent_ONG, scale_ON, grid)
    assert torch.equal(weight_OI, quantized.dequantize())
    grad_OI = torch.randn(weight_OI.shape, generator=torch.Generator().manual_seed(3))
    found = torch.autograd.grad(weight_OI, (latent_ONG, scale_ON), grad_OI)
    straight_OI = (latent_ONG * grid.unit * scale_ON.unsqueeze(-1)).flatten(1)  # what straight through means
    wanted = torch.autograd.grad(straight_OI, (latent_ONG, scale_ON), grad_OI)
    torch.testing.assert_close(found, wanted)


def test_scales_and_zero_points_have_their_gradients():
    quantized = make("zeros-4")
    scale_ON, shift_ON = quantized.scale_ON.float().requires_grad_(), quantized.zero_ON.float().requires_grad_()
    weight_OI = scaled_weight(quantized.code_ONG, scale_ON, shift_ON)
    assert torch.equal(weight_OI, quantized.dequantize())
    grad_OI = torch.randn(weight_OI.shape, generator=torch.Generator().manual_seed(3))
    found = torch.autograd.grad(weight_OI, (scale_ON, shift_ON), grad_OI)
    plain_OI = ((quantized.code_ONG.float() - shift_ON.unsqueeze(-1)) * scale_ON.unsqueeze(-1)).flatten(1)
    torch.testing.assert_close(found, torch.autograd.grad(plain_OI, (scale_ON, shift_ON), grad_OI))


def test_under_autocast_weights_come_as_products_need_them():
    quantized = make("uniform-3")
    with torch.autocast("cpu", torch.bfloat16):
        weight_OI = rounded_weight(values(quantized), quantized.scale_ON.float(), Grid(quantized))
    assert weight_OI.dtype == torch.bfloat16
    assert torch.equal(weight_OI, quantized.dequantize().bfloat16())
