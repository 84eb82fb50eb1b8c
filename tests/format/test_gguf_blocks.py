"""Blocks of GGUF, read back by the gguf package: exact where they can be, and the smallest type that will do."""

from __future__ import annotations

import numpy as np
import pytest

from penjing.format.gguf_blocks import block_type, pack_blocks

gguf = pytest.importorskip("gguf", reason="pip install 'penjing[fit]'")

#: least and greatest step to the type that holds them
RANGES = {
    (-1, 1): "Q4_0",
    (-8, 7): "Q4_0",
    (0, 15): "Q4_1",
    (-15, 0): "Q4_1",
    (-16, 15): "Q5_0",
    (-31, 0): "Q5_1",
    (-32, 31): "Q8_0",
    (-128, 127): "Q8_0",
}


def steps_between(low: int, high: int, rows: int = 5, cols: int = 96):
    generator = np.random.default_rng(high)
    step_OI = generator.integers(low, high + 1, (rows, cols)).astype(np.int16)
    step_OI[0, :2] = low, high
    return step_OI


@pytest.mark.parametrize("group_size", [32, 96])
@pytest.mark.parametrize("span", RANGES)
def test_the_smallest_type_gives_the_weights_back(span, group_size):
    step_OI = steps_between(*span)
    scale_ON = np.random.default_rng(1).uniform(-2, 2, (5, 96 // group_size)).astype(np.float16)
    name = block_type(step_OI, group_size)
    assert name == RANGES[span]
    kind = gguf.GGMLQuantizationType[name]
    found_OI = gguf.quants.dequantize(pack_blocks(name, step_OI, scale_ON), kind)
    scale_OI = scale_ON.astype(np.float32).repeat(group_size, axis=1)
    # a minimum of up to 31 steps, rounded to 11 bits
    slack = {"Q4_1": 2**-7, "Q5_1": 2**-6}.get(name, 0)
    assert (np.abs(found_OI - step_OI * scale_OI) <= slack * np.abs(scale_OI)).all()


def test_what_no_type_holds():
    assert block_type(steps_between(-255, 0), 32) is None
    assert block_type(steps_between(-8, 7), 48) is None
    assert block_type(steps_between(-8, 7), 16) is None
