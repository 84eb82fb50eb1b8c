"""The engine's matrix product, through its C ABI, against reference_kernels.py. C columns, O outputs, I inputs.

Every instruction set against the scalar one, bit for bit, is csrc/tests/test_kernels.cpp.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from penjing.format.scales import unpack_scales
from penjing.runtime import binding, reference_kernels

EPSILON = np.finfo(np.float32).eps


def packed_matrix(rng, *, rows, bits, group_size, num_groups, symmetric, levels="uniform", scale_bits=16):
    """Random bytes are valid codes. Padding rows have scale 0. (Matrix, its arrays, float64 weights [O, I])"""
    num_panels, stride = -(-rows // 16), -(-group_size // 16) * 16
    units = num_groups * stride // 16
    panel_bytes = 64 * (units // 5 * 4 + units % 5) if levels == "ternary" else units * 32 * bits
    codes = rng.integers(0, 256, (num_panels, panel_bytes), np.uint8)
    book = rng.integers(-128, 128, 1 << bits, np.int8) if levels == "book" else None
    scales = rng.uniform(0.001, 0.02, (num_panels, num_groups, 16)).astype(np.float16)
    for row in range(rows, 16 * num_panels):
        scales[row // 16, :, row % 16] = 0
    if scale_bits == 8:
        stored = rng.integers(0, 256, scales.shape, np.uint8)
        stored[scales == 0] = 0
        scales = unpack_scales(stored)
    else:
        stored = scales
    zeros = None if symmetric else rng.integers(0, 1 << bits, scales.shape, np.uint8)
    bias = rng.standard_normal(rows).astype(np.float32)
    matrix = binding.Matrix(
        data=binding.pointer(codes),
        scales=binding.pointer(stored),
        zeros=binding.pointer(zeros),
        bias=binding.pointer(bias),
        book=binding.pointer(book),
        levels=binding.LEVELS[levels],
        kind=binding.KINDS["codes"],
        rows=rows,
        cols=group_size * num_groups,
        bits=bits,
        group_size=group_size,
        scale_bits=scale_bits,
    )
    meaning = {"bits": bits, "group_size": group_size, "levels": levels, "book_K": book}
    weight = reference_kernels.dequantize(codes, scales, zeros, **meaning)
    return matrix, (codes, stored, zeros, book, bias), weight[:rows]


def largest_group_sum(weight_OI, x_CI, group_size):
    """Sum over groups of |what the group adds|, [C, O]: each is rounded a few times."""
    code_CNG, scale_CN, _ = reference_kernels.quantize_columns(x_CI, group_size)
    weight_ONG = weight_OI.reshape(len(weight_OI), -1, group_size)
    return np.abs(np.einsum("cng,ong->con", code_CNG * scale_CN[..., None].astype(np.float64), weight_ONG)).sum(axis=2)


WAYS = [("uniform", bits, symmetric) for bits in (2, 3, 4, 5, 6, 8) for symmetric in (True, False)]
WAYS += [("uniform", 1, True), ("ternary", 2, True), *(("book", bits, True) for bits in (2, 3, 4))]


@pytest.mark.parametrize("scale_bits", [16, 8])
@pytest.mark.parametrize(("group_size", "num_groups"), [(32, 3), (36, 2), (4, 5), (100, 1)])
@pytest.mark.parametrize(("levels", "bits", "symmetric"), WAYS)
def test_product_of_codes(levels, bits, symmetric, group_size, num_groups, scale_bits):
    rng = np.random.default_rng(bits * 100 + group_size)
    for rows in (1, 17):
        matrix, arrays, weight_OI = packed_matrix(
            rng,
            rows=rows,
            bits=bits,
            group_size=group_size,
            num_groups=num_groups,
            symmetric=symmetric,
            levels=levels,
            scale_bits=scale_bits,
        )
        x_CI = rng.standard_normal((11, matrix.cols)).astype(np.float32)
        bias_O = arrays[-1].astype(np.float64)
        exact_CO = reference_kernels.linear_codes(weight_OI, x_CI, group_size) + bias_O
        # each step rounds scale, product and sum once; the bias is one more sum
        bound_CO = (num_groups + 3) * EPSILON * (largest_group_sum(weight_OI, x_CI, group_size) + np.abs(bias_O))
        for threads in (1, 2):
            assert (np.abs(binding.linear(matrix, x_CI, threads=threads) - exact_CO) <= bound_CO).all()


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_product_of_floats(kind):
    rng = np.random.default_rng(3)
    for rows, cols in ((1, 1), (16, 5), (50, 33)):
        panels = rng.standard_normal((-(-rows // 16), cols, 16)).astype(np.float32)
        if kind == "f16":
            panels = panels.astype(np.float16)
        if kind == "bf16":
            panels = (panels.view(np.uint32) >> 16).astype(np.uint16)
        matrix = binding.Matrix(data=binding.pointer(panels), kind=binding.KINDS[kind], rows=rows, cols=cols)
        weight_OI = reference_kernels.unpack_float(panels)[:rows]
        x_CI = rng.standard_normal((7, cols)).astype(np.float32)
        bound_CO = cols * EPSILON * (np.abs(x_CI.astype(np.float64)) @ np.abs(weight_OI).T)
        assert (np.abs(binding.linear(matrix, x_CI) - x_CI.astype(np.float64) @ weight_OI.T) <= bound_CO).all()


def test_columns_and_threads_do_not_change_a_bit():
    rng = np.random.default_rng(4)
    matrix, _arrays, _ = packed_matrix(rng, rows=83, bits=4, group_size=32, num_groups=5, symmetric=True)
    x_CI = rng.standard_normal((40, matrix.cols)).astype(np.float32)
    together = binding.linear(matrix, x_CI, threads=2)
    alone = np.concatenate([binding.linear(matrix, x_CI[c : c + 1]) for c in range(len(x_CI))])
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_reaches_every_output_of_its_column(bad):
    rng = np.random.default_rng(5)
    matrix, _arrays, _ = packed_matrix(rng, rows=20, bits=4, group_size=32, num_groups=2, symmetric=True)
    x_CI = rng.standard_normal((2, matrix.cols)).astype(np.float32)
    x_CI[1, 40] = bad
    y_CO = binding.linear(matrix, x_CI)
    assert np.isfinite(y_CO[0]).all()
    assert np.isnan(y_CO[1]).all()


@pytest.mark.parametrize("group_size", [1, 7, 16, 64])
def test_an_activation_is_off_by_at_most_half_a_step(group_size):
    rng = np.random.default_rng(6)
    x_CI = (rng.standard_normal((3, 4 * group_size)) * 10.0 ** rng.integers(-20, 20, (3, 1))).astype(np.float32)
    x_CI[0, :group_size] = 0
    code_CNG, scale_CN, sum_CN = reference_kernels.quantize_columns(x_CI, group_size)
    rounded_CNG = code_CNG * scale_CN[..., None].astype(np.float64)
    assert np.abs(code_CNG).max() <= 127
    assert (sum_CN == code_CNG.sum(axis=2)).all()
    slack = 0.5 + 127 * 2 * EPSILON  # of a step: the value and the step were rounded to float32
    assert (np.abs(rounded_CNG.reshape(x_CI.shape) - x_CI) <= slack * scale_CN.repeat(group_size, axis=1)).all()


@pytest.mark.parametrize(("wanted", "status"), [("scalar", 0), ("riscv", 1)])
def test_the_environment_forces_an_instruction_set_or_says_why_not(wanted, status):
    code = "from penjing.runtime import binding; print(binding.isa())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PENJING_ISA": wanted}
    )
    assert done.returncode == status
    assert wanted in (done.stdout if status == 0 else done.stderr)
