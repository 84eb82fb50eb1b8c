"""Groups: shapes, and rounding scales upwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from penjing.format.pack import Layout, dequantize, pack_codes
from penjing.tensors.groups import Quantized, round_up_to_half, to_groups


def test_groups_are_consecutive_inputs():
    weight_OI = torch.arange(24.0).reshape(2, 12)
    weight_ONG = to_groups(weight_OI, 4)
    assert weight_ONG.shape == (2, 3, 4)
    assert weight_ONG[1, 2].tolist() == [20, 21, 22, 23]
    with pytest.raises(ValueError, match="5 does not divide 12"):
        to_groups(weight_OI, 5)


def test_rounding_up_gives_the_next_float16():
    every = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)  # all positive finite ones
    assert (round_up_to_half(torch.from_numpy(every)).numpy() == every).all()
    between = np.nextafter(every[:-1], np.float32(np.inf))
    np.testing.assert_array_equal(round_up_to_half(torch.from_numpy(between)).numpy(), every[1:])


def test_rounding_up_never_gives_zero_and_overflows_to_infinity():
    found = round_up_to_half(torch.tensor([0.0, 1e-30, 65504.0, 65505.0, 1e30]))
    assert found.tolist() == [2.0**-24, 2.0**-24, 65504.0, float("inf"), float("inf")]


@pytest.mark.parametrize("symmetric", [True, False])
def test_dequantize(symmetric):
    code_ONG = torch.tensor([[[0, 15], [8, 9]]], dtype=torch.uint8)
    scale_ON = torch.tensor([[0.5, 2.0]]).half()
    zero_ON = None if symmetric else torch.tensor([[1, 20]], dtype=torch.uint8)
    weight_OI = Quantized(code_ONG=code_ONG, scale_ON=scale_ON, zero_ON=zero_ON, bits=4).dequantize()
    assert weight_OI.dtype == torch.float32
    assert weight_OI.tolist() == [[-4.0, 3.5, 0.0, 2.0] if symmetric else [-0.5, 7.0, -24.0, -22.0]]


@pytest.mark.parametrize(("levels", "bits"), [("uniform", 1), ("uniform", 3), ("ternary", 2), ("book", 2), ("book", 4)])
def test_what_is_simulated_is_what_is_stored(levels, bits):
    layout = Layout(kind="codes", rows=5, cols=24, bits=bits, group_size=8, levels=levels)
    generator = torch.Generator().manual_seed(bits)
    code_ONG = torch.randint(0, layout.num_codes, (5, 3, 8), generator=generator, dtype=torch.uint8)
    scale_ON = torch.randn(5, 3, generator=generator).half()
    book_K = torch.randint(-128, 128, (1 << bits,), generator=generator, dtype=torch.int8)
    book_K = book_K if levels == "book" else None
    quantized = Quantized(code_ONG=code_ONG, scale_ON=scale_ON, bits=bits, levels=levels, book_K=book_K)
    book = None if book_K is None else book_K.numpy()
    packed = pack_codes(layout, code_ONG.flatten(1).numpy(), scale_ON.numpy(), None, book)
    np.testing.assert_array_equal(quantized.dequantize().numpy(), dequantize(layout, packed))
    if levels == "ternary":
        assert quantized.dequantize()[0, 0] == (float(code_ONG[0, 0, 0]) - 1) * scale_ON[0, 0]
