"""Scale search: what it promises over rounding, under any importance; edges of float16."""

import pytest
import torch

from penjing.errors import PenjingError
from penjing.quant import apply, rtn, scale_search, technique, uses_importance

BITS = [2, 3, 4, 5, 6, 8]


def random_matrix(rows=24, cols=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(rows, cols, generator=generator)
    importance_I = torch.randn(cols, generator=generator).exp()
    return weight_OI, importance_I


def weighted_error(quantized, weight_OI, importance_I):
    return float(((quantized.dequantize() - weight_OI).square() * importance_I).sum())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [12, 32, 96])
def test_it_beats_rounding_by_the_error_that_counts(bits, symmetric, group_size):
    weight_OI, importance_I = random_matrix()
    settings = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    searched = scale_search.quantize(scale_search.Spec(**settings), weight_OI, importance_I)
    rounded = rtn.quantize(rtn.Spec(**settings), weight_OI)
    assert weighted_error(searched, weight_OI, importance_I) < weighted_error(rounded, weight_OI, importance_I)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["zeros", "constant", "negative", "outlier", "tiny", "large"])
def test_edges_stay_finite_and_within_the_codes(bits, symmetric, kind):
    normal_OI, importance_I = random_matrix(rows=3, cols=32)
    weight_OI = {
        "zeros": torch.zeros_like(normal_OI),
        "constant": torch.full_like(normal_OI, -0.7),
        "negative": -normal_OI.abs() - 3,
        "outlier": normal_OI * 1e-3 + 50 * torch.eye(3, 32),
        "tiny": normal_OI * 1e-20,
        "large": normal_OI * 1e4,
    }[kind]
    before_OI = weight_OI.clone()
    spec = scale_search.Spec(bits=bits, group_size=32, symmetric=symmetric)
    quantized = scale_search.quantize(spec, weight_OI, importance_I)
    assert torch.equal(weight_OI, before_OI)
    assert quantized.code_ONG.dtype == torch.uint8
    assert int(quantized.code_ONG.max()) < 1 << bits
    assert quantized.scale_ON.dtype == torch.float16
    assert quantized.scale_ON.isfinite().all()
    assert (quantized.scale_ON != 0).all()
    assert (quantized.zero_ON is None) == symmetric
    if kind == "constant":  # one value: a scale that hits it exactly but for its rounding to float16
        assert (quantized.dequantize() + 0.7).abs().max() <= 0.7 * 2**-11 * 1.01


def test_the_important_input_is_kept_best():
    weight_OI, _ = random_matrix(rows=200, cols=32)
    importance_I = torch.ones(32)
    importance_I[5] = 1e4
    quantized = scale_search.quantize(scale_search.Spec(bits=3, group_size=32), weight_OI, importance_I)
    error_I = (quantized.dequantize() - weight_OI).square().mean(dim=0)
    assert error_I[5] < 0.2 * error_I.mean()


def test_inputs_that_calibration_never_saw_still_count():
    weight_OI, _ = random_matrix(rows=50, cols=32)
    importance_I = torch.zeros(32)
    importance_I[0] = 1.0
    quantized = scale_search.quantize(scale_search.Spec(bits=4, group_size=32), weight_OI, importance_I)
    zeros = scale_search.quantize(scale_search.Spec(bits=4, group_size=32), weight_OI, torch.zeros(32))
    unseen_error = (quantized.dequantize() - weight_OI)[:, 1:].abs().mean()
    assert unseen_error < 0.2 * weight_OI.abs().mean()  # a sixteenth of the range is a step; nothing is thrown away
    assert zeros.dequantize().isfinite().all()


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    weight_OI, importance_I = random_matrix(rows=33)
    spec = scale_search.Spec(bits=4, group_size=32)
    whole = scale_search.quantize(spec, weight_OI, importance_I)
    monkeypatch.setattr("penjing.tensors.scales._BLOCK", 7 * 96)
    blocks = scale_search.quantize(spec, weight_OI, importance_I)
    assert torch.equal(whole.code_ONG, blocks.code_ONG)
    assert torch.equal(whole.scale_ON, blocks.scale_ON)


def test_a_technique_that_weighs_errors_says_so():
    weight_OI, importance_I = random_matrix()
    assert uses_importance(technique("scale_search"))
    assert not uses_importance(technique("rtn"))
    with pytest.raises(PenjingError, match="scale_search needs text"):
        apply(technique("scale_search"), scale_search.Spec(group_size=32), weight_OI, None)
    apply(technique("rtn"), rtn.Spec(group_size=32), weight_OI, importance_I)
