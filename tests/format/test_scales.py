"""Scales of 8 bits: every byte there is, and what does not fit in one."""

from __future__ import annotations

import numpy as np
import pytest

from penjing.format.scales import LARGEST, SMALLEST, pack_scales, unpack_scales


def test_every_byte_is_sign_exponent_and_mantissa():
    every = np.arange(256, dtype=np.uint8)
    found = unpack_scales(every)
    for byte, scale in zip(every.tolist(), found.tolist(), strict=True):
        sign, exponent, mantissa = -1 if byte & 128 else 1, byte >> 3 & 15, byte & 7
        assert scale == sign * (1 + mantissa / 8 if exponent else mantissa / 8) * 2.0 ** (max(exponent, 1) - 15)
    np.testing.assert_array_equal(pack_scales(found), every)
    assert found.max() == LARGEST
    assert found[found > 0].min() == SMALLEST


@pytest.mark.parametrize("scale", [2.0, 1.9, 0.1, 2.0**-18, np.inf, np.nan])
def test_what_a_byte_does_not_hold_is_refused(scale):
    with pytest.raises(ValueError, match="8 bits do not hold"):
        pack_scales(np.array([0.5, scale], np.float16))
