"""GPTQ: smaller weighted error than rounding, no worse with each sweep, and right at the edges."""

from __future__ import annotations

import itertools

import pytest
import torch

from penjing.format.scales import pack_scales
from penjing.quant import gptq, scale_search
from penjing.tensors.rounding import rounded


def weights(rows=12, cols=96):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))


def hessian(cols=96, tokens=400):
    """Inputs that go together, as those of real layers do, some of them much larger than others."""
    generator = torch.Generator().manual_seed(1)
    mixing_II = torch.randn(cols, cols, generator=generator) * torch.logspace(0, -2, cols)
    x_TI = torch.randn(tokens, cols, generator=generator) @ mixing_II.T
    return x_TI.T @ x_TI


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [12, 32, 96])
def test_weighted_error_is_below_that_of_rounding_and_falls_with_each_sweep(bits, symmetric, group_size):
    weight_OI, hessian_II = weights(), hessian()
    before_OI, before_II = weight_OI.clone(), hessian_II.clone()
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    rounded = scale_search.quantize(scale_search.Spec(**settings), weight_OI, hessian_II.diagonal())
    errors = [
        gptq.error(
            weight_OI,
            gptq.quantize(gptq.Spec(**settings, damping=1e-4, sweeps=sweeps), weight_OI, hessian_II),
            hessian_II,
        )
        for sweeps in range(3)
    ]
    assert errors[0] < 0.8 * gptq.error(weight_OI, rounded, hessian_II)
    # scales are stored with 11 bits: an error of 2^-12 of the weights at most comes back
    slack = 2.0**-12 * gptq.error(weight_OI, rounded, hessian_II)
    assert all(later <= earlier + slack for earlier, later in itertools.pairwise(errors))
    assert errors[2] < errors[0]
    assert torch.equal(weight_OI, before_OI)
    assert torch.equal(hessian_II, before_II)


@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_that_do_not_go_together_are_only_rounded(symmetric):
    importance_I = torch.logspace(0, -2, 96)
    spec = {"bits": 3, "group_size": 32, "symmetric": symmetric}
    found = gptq.quantize(gptq.Spec(**spec, sweeps=0), weights(), torch.diag(importance_I))
    wanted = scale_search.quantize(scale_search.Spec(**spec), weights(), importance_I)
    assert torch.equal(found.code_ONG, wanted.code_ONG)
    assert torch.equal(found.scale_ON, wanted.scale_ON)


def test_what_is_on_the_grid_stays():
    step_OI = torch.randint(-8, 8, (6, 64), generator=torch.Generator().manual_seed(2)).float()
    step_OI[:, ::32] = -8
    weight_OI = step_OI * 0.125
    found = gptq.quantize(gptq.Spec(bits=4, group_size=32), weight_OI, hessian(64))
    assert torch.equal(found.dequantize(), weight_OI)


@pytest.mark.parametrize(("levels", "bits"), [("book", 2), ("book", 3), ("book", 4), ("ternary", 2)])
@pytest.mark.parametrize("group_size", [12, 32, 96])
def test_with_other_levels_too_the_error_is_below_that_of_rounding(levels, bits, group_size):
    weight_OI, hessian_II = weights(), hessian()
    settings = {"bits": bits, "group_size": group_size, "levels": levels}
    start = rounded(weight_OI, hessian_II.diagonal(), **settings)
    by_sweeps = [
        gptq.quantize(gptq.Spec(**settings, damping=1e-4, sweeps=sweeps), weight_OI, hessian_II) for sweeps in range(3)
    ]
    errors = [gptq.error(weight_OI, found, hessian_II) for found in by_sweeps]
    before = gptq.error(weight_OI, start, hessian_II)
    assert errors[0] < 0.8 * before
    slack = 2.0**-12 * before
    assert all(later <= earlier + slack for earlier, later in itertools.pairwise(errors))
    for found in by_sweeps:
        assert (found.levels, found.bits, found.zero_ON) == (levels, bits, None)
        assert int(found.code_ONG.max()) < (3 if levels == "ternary" else 1 << bits)


@pytest.mark.parametrize(("levels", "bits"), [("book", 2), ("book", 4), ("ternary", 2)])
def test_with_other_levels_too_inputs_that_do_not_go_together_are_only_rounded(levels, bits):
    importance_I = torch.logspace(0, -2, 96)
    spec = {"bits": bits, "group_size": 32, "levels": levels}
    found = gptq.quantize(gptq.Spec(**spec, sweeps=0), weights(), torch.diag(importance_I))
    wanted = rounded(weights(), importance_I, **spec)
    assert torch.equal(found.code_ONG, wanted.code_ONG)
    assert torch.equal(found.scale_ON, wanted.scale_ON)
    assert (found.book_K is None) == (levels == "ternary")


@pytest.mark.parametrize(("levels", "bits"), [("uniform", 3), ("book", 2), ("ternary", 2)])
@pytest.mark.parametrize("sweeps", [0, 1])
def test_scales_are_such_as_were_asked_for(levels, bits, sweeps):
    settings = {"bits": bits, "group_size": 32, "levels": levels, "sweeps": sweeps}
    wide, small = (
        gptq.quantize(gptq.Spec(**settings, scale_bits=scale_bits), weights(), hessian()) for scale_bits in (16, 8)
    )
    assert small.scale_bits == 8
    pack_scales(small.scale_ON.numpy())  # they fit
    errors = [gptq.error(weights(), found, hessian()) for found in (wide, small)]
    assert errors[1] < 1.25 * errors[0]


def test_a_book_that_was_chosen_for_other_rows_is_used():
    spec = gptq.Spec(bits=2, group_size=32, levels="book")
    first = gptq.quantize(spec, weights(), hessian())
    other = gptq.quantize(spec, weights() ** 3, hessian(), book_K=first.book_K)
    assert torch.equal(other.book_K, first.book_K)
    assert not torch.equal(gptq.quantize(spec, weights() ** 3, hessian()).book_K, first.book_K)


def test_rows_do_not_see_each_other():
    whole = gptq.quantize(gptq.Spec(bits=3, group_size=32), weights(), hessian()).dequantize()
    part = gptq.quantize(gptq.Spec(bits=3, group_size=32), weights()[:5], hessian()).dequantize()
    # sums in another order may tip a code that lies between two
    assert (whole[:5] != part).float().mean() < 0.01


@pytest.mark.parametrize("cols", [1, 36, 64, 65, 130])
def test_any_row_length(cols):
    found = gptq.quantize(gptq.Spec(bits=4, group_size=cols), weights(3, cols), hessian(cols))
    assert found.dequantize().shape == (3, cols)
    assert found.scale_ON.isfinite().all()


def test_dead_inputs_and_groups_of_zeros():
    weight_OI, hessian_II = weights(), hessian()
    weight_OI[:, 32:64] = 0.0
    hessian_II[5], hessian_II[:, 5] = 0.0, 0.0
    zeros_kept = scale_search.quantize(scale_search.Spec(bits=4, group_size=32), weight_OI, hessian_II.diagonal())
    assert (zeros_kept.dequantize()[:, 32:64] == 0).all()
    for dead_II in (hessian_II, torch.zeros(96, 96)):
        found = gptq.quantize(gptq.Spec(bits=4, group_size=32), weight_OI, dead_II)
        assert found.scale_ON.isfinite().all()
        assert (found.scale_ON != 0).all()
        # a group of zeros may make up for its neighbours, or stay
        assert gptq.error(weight_OI, found, dead_II) <= gptq.error(weight_OI, zeros_kept, dead_II)
        # an input that was never seen makes up for nothing: it is rounded, or clipped towards zero
        half_step_O = 0.5 * found.scale_ON[:, 0].float().abs()
        assert ((found.dequantize() - weight_OI)[:, 5].abs() <= weight_OI[:, 5].abs() + half_step_O).all()


def test_a_hessian_of_few_tokens_is_damped():
    found = gptq.quantize(gptq.Spec(bits=4, group_size=32), weights(), hessian(tokens=2))
    assert found.dequantize().isfinite().all()


@pytest.mark.parametrize("cols", [1, 2, 96])
def test_what_is_prepared_is_the_inverse_in_the_order_taken(cols):
    hessian_II = hessian(cols)
    found = gptq.prepare(gptq.Spec(damping=0.1), hessian_II)
    damped_II = hessian_II.double() + 0.1 * hessian_II.double().diagonal().mean() * torch.eye(cols)
    order_I = damped_II.diagonal().argsort(descending=True, stable=True)
    assert torch.equal(found.order_I, order_I)
    assert torch.equal(found.upper_II, found.upper_II.triu())
    upper_II = found.upper_II.double()
    identity_II = upper_II.T @ upper_II @ damped_II[order_I][:, order_I]
    # U is rounded to float32; its error is enlarged by no more than the condition, which the damping bounds
    condition = float(torch.linalg.cond(damped_II))
    assert float((identity_II - torch.eye(cols)).abs().max()) < 4 * condition * torch.finfo(torch.float32).eps


def test_prepared_once_or_each_time_gives_the_same_codes():
    spec, hessian_II = gptq.Spec(bits=3, group_size=32), hessian()
    prepared = gptq.prepare(spec, hessian_II)
    whole = gptq.quantize(spec, weights(), hessian_II)
    again = gptq.quantize(spec, weights(), hessian_II, prepared)
    assert torch.equal(whole.code_ONG, again.code_ONG)
    assert torch.equal(whole.scale_ON, again.scale_ON)
