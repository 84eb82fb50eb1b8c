"""Round to nearest: half a step at most, whatever the weights; what is simulated is what is packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from penjing.errors import PenjingError
from penjing.format.pack import Layout, dequantize, pack_codes
from penjing.quant import rtn, technique

BITS = [2, 3, 4, 5, 6, 8]


def weights(kind: str, rows: int = 6, cols: int = 96) -> torch.Tensor:
    normal_OI = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))
    special = {
        "normal": normal_OI,
        "zeros": torch.zeros(rows, cols),
        "a zero group": torch.cat([torch.zeros(rows, 32), normal_OI[:, 32:]], dim=1),
        "positive": normal_OI.abs() + 3,
        "negative": -normal_OI.abs() - 3,
        "constant": torch.full((rows, cols), -0.7),
        "outlier": normal_OI * 1e-3 + torch.nn.functional.one_hot(torch.arange(rows), cols) * 50,
        "large": normal_OI * 1e4,
        "small": normal_OI * 1e-6,  # scales are subnormal
        "tiny": normal_OI * 1e-20,  # scales would be zero
    }
    return special[kind]


KINDS = ["normal", "zeros", "a zero group", "positive", "negative", "constant", "outlier", "large", "small", "tiny"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [1, 12, 32, 96])
def test_error_is_at_most_half_a_step(bits, symmetric, kind, group_size):
    weight_OI = weights(kind)
    before = weight_OI.clone()
    spec = rtn.Spec(bits=bits, group_size=group_size, symmetric=symmetric)
    quantized = rtn.quantize(spec, weight_OI)
    assert (quantized.scale_ON > 0).all()
    assert quantized.scale_ON.isfinite().all()
    assert int(quantized.code_ONG.max()) < 1 << bits
    assert (quantized.zero_ON is None) == symmetric
    step_ON1 = quantized.scale_ON.double().unsqueeze(-1)
    error_ONG = (quantized.dequantize().double() - weight_OI.double()).abs().unflatten(1, (-1, group_size))
    # float32 division and product: each off by eps / 2 of a value of at most 2^bits steps
    slack = 2**bits * torch.finfo(torch.float32).eps
    assert (error_ONG <= (0.5 + slack) * step_ON1).all()
    assert torch.equal(weight_OI, before)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_zero_stays_zero(bits, symmetric):
    weight_OI = weights("positive")
    weight_OI[:, ::7] = 0.0
    quantized = rtn.quantize(rtn.Spec(bits=bits, group_size=32, symmetric=symmetric), weight_OI)
    assert (quantized.dequantize()[:, ::7] == 0).all()


@pytest.mark.parametrize("bits", BITS)
def test_more_freedom_is_less_error(bits):
    weight_OI = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) + 0.3

    def error(**settings):
        return (rtn.quantize(rtn.Spec(**settings), weight_OI).dequantize() - weight_OI).square().mean()

    assert error(bits=bits, group_size=32) < error(bits=bits, group_size=128)
    assert error(bits=bits, symmetric=False) < error(bits=bits, symmetric=True)
    if bits > 2:
        assert error(bits=bits) < error(bits=BITS[BITS.index(bits) - 1])
    if bits < 8:  # the usual rule, whose code -2^(bits-1) is never used
        group_ONG = weight_OI.unflatten(1, (-1, 64))
        scale_ON1 = group_ONG.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
        usual = ((group_ONG / scale_ON1).round() * scale_ON1 - group_ONG).square().mean()
        assert error(bits=bits) < usual


def test_eight_bits_give_the_codes_of_q8_0_back():
    generator = torch.Generator().manual_seed(0)
    code_ONG = torch.randint(-127, 128, (8, 4, 32), generator=generator)
    code_ONG[..., 5] = 127
    scale_ON = (torch.rand(8, 4, generator=generator) * 0.01).half()
    weight_OI = (code_ONG * scale_ON.unsqueeze(-1).float()).flatten(1)
    quantized = rtn.quantize(rtn.Spec(bits=8, group_size=32), weight_OI)
    assert torch.equal(quantized.scale_ON, scale_ON)
    assert torch.equal(quantized.dequantize(), weight_OI)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_what_is_simulated_is_what_is_packed(bits, symmetric):
    weight_OI = weights("normal", 37, 96)
    quantized = rtn.quantize(rtn.Spec(bits=bits, group_size=48, symmetric=symmetric), weight_OI)
    layout = Layout(kind="codes", rows=37, cols=96, bits=bits, group_size=48, symmetric=symmetric)
    zero_ON = None if quantized.zero_ON is None else quantized.zero_ON.numpy()
    packed = pack_codes(layout, quantized.code_ONG.flatten(1).numpy(), quantized.scale_ON.numpy(), zero_ON)
    np.testing.assert_array_equal(dequantize(layout, packed), quantized.dequantize().numpy())


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_range_beyond_float16_has_an_infinite_scale(symmetric):
    quantized = rtn.quantize(rtn.Spec(bits=2, group_size=96, symmetric=symmetric), weights("normal") * 1e6)
    assert quantized.scale_ON.isinf().all()


def test_techniques_are_found_by_the_name_of_their_file():
    assert technique("rtn") is rtn
    with pytest.raises(PenjingError, match="no technique 'gptp'") as caught:
        technique("gptp")
    assert "rtn" in caught.value.attempt
