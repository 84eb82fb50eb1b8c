"""Packing, judged by a reader that finds one code at a time as csrc/include/penjing.h tells it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.errors import PenjingError
from penjing.format.pack import (
    LANES,
    Layout,
    check_group_size,
    dequantize,
    pack_codes,
    pack_float,
    round_floats,
    unpack_codes,
    unpack_float,
    widen_floats,
)
from penjing.format.planes import PLANES

#: (rows, cols, group_size): one, odd, less and more than a panel, groups that are padded and groups that are not
SHAPES = [(1, 1, 1), (16, 16, 16), (17, 96, 32), (33, 30, 10), (5, 7, 7), (3, 64, 64), (40, 100, 20), (15, 24, 8)]

#: levels and bits of everything that has no zero points but uniform codes
OTHERS = [("uniform", 1), ("ternary", 2), ("book", 2), ("book", 3), ("book", 4)]


def layout_of(rows: int, cols: int, group_size: int, bits: int, symmetric: bool = True) -> Layout:
    return Layout(kind="codes", rows=rows, cols=cols, bits=bits, group_size=group_size, symmetric=symmetric)


def random_codes(layout: Layout, seed: int = 0):
    generator = np.random.default_rng(seed)
    groups = (layout.rows, layout.num_groups)
    code_OI = generator.integers(0, 1 << layout.bits, (layout.rows, layout.cols), dtype=np.uint8)
    scale_ON = generator.uniform(1e-7, 3, groups).astype(np.float16)
    zero_ON = None if layout.symmetric else generator.integers(0, 256, groups, dtype=np.uint8)
    return code_OI, scale_ON, zero_ON


def other_layout(rows: int, cols: int, group_size: int, levels, bits: int) -> Layout:
    return Layout(kind="codes", rows=rows, cols=cols, bits=bits, group_size=group_size, levels=levels)


def random_other(layout: Layout, seed: int = 0):
    """Codes, scales, book or None."""
    generator = np.random.default_rng(seed)
    code_OI = generator.integers(0, layout.num_codes, (layout.rows, layout.cols), dtype=np.uint8)
    scale_ON = generator.uniform(-3, 3, (layout.rows, layout.num_groups)).astype(np.float16)
    book_K = generator.integers(-128, 128, 1 << layout.bits, dtype=np.int8) if layout.levels == "book" else None
    return code_OI, scale_ON, book_K


def ternary_at(layout: Layout, panel_bytes: np.ndarray, row: int, col: int) -> int:
    """Slow and obvious: a digit of a byte, by division."""
    stride = (layout.group_size + 15) // 16 * 16
    group, inside = divmod(col, layout.group_size)
    unit, within = divmod(group * stride + inside, 16)
    block, item = divmod(within, 4)
    entry = 4 * (row % 16) + item
    five, kth = divmod(unit, 5)
    part, digit = (kth, block + 1) if kth < 4 else (block, 0)
    index = 256 * five + 64 * part + entry
    value = int(panel_bytes[index]) * 243 // 256
    return value // 3 ** (4 - digit) % 3


def code_at(layout: Layout, panel_bytes: np.ndarray, row: int, col: int) -> int:
    """Slow and obvious. Bytes of one panel; all numbers as in the comment of penjing.h."""
    stride = (layout.group_size + 15) // 16 * 16
    group, inside = divmod(col, layout.group_size)
    block, item = divmod(inside, 4)
    entry = 4 * (row % 16) + item
    begin = group * stride * 16 * layout.bits // 8
    code = shift = 0
    for width in PLANES[layout.bits]:
        if width == 1:
            value = panel_bytes[begin + 8 * block + entry // 8] >> entry % 8 & 1
        else:
            share = 8 // width
            byte = panel_bytes[begin + 64 * (block // share) + entry]
            value = byte >> width * (block % share) & (1 << width) - 1
        code |= int(value) << shift
        shift += width
        begin += stride * 16 * width // 8
    return code


@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize(("rows", "cols", "group_size"), SHAPES)
def test_each_code_is_where_the_header_says(bits, rows, cols, group_size):
    layout = layout_of(rows, cols, group_size, bits)
    code_OI, scale_ON, _ = random_codes(layout)
    packed = pack_codes(layout, code_OI, scale_ON, None)
    for row in range(rows):
        panel_bytes = packed["codes"][row // LANES]
        assert [code_at(layout, panel_bytes, row, col) for col in range(cols)] == code_OI[row].tolist()


@pytest.mark.parametrize(("levels", "bits"), OTHERS)
@pytest.mark.parametrize(("rows", "cols", "group_size"), SHAPES)
def test_codes_of_other_levels_there_and_back(levels, bits, rows, cols, group_size, monkeypatch):
    monkeypatch.setattr("penjing.format.pack._CHUNK", 20 * cols)
    layout = other_layout(rows, cols, group_size, levels, bits)
    layout.check(where="")
    assert Layout.from_fields(layout.to_fields(), where="") == layout
    code_OI, scale_ON, book_K = random_other(layout)
    packed = pack_codes(layout, code_OI, scale_ON, None, book_K)
    for name, spec in layout.tensor_specs().items():
        assert packed[name].shape == spec.shape
    assert sum(array.nbytes for array in packed.values()) == layout.nbytes >= layout.payload_bytes
    read = ternary_at if levels == "ternary" else code_at
    for row in range(rows):
        panel_bytes = packed["codes"][row // LANES]
        assert [read(layout, panel_bytes, row, col) for col in range(cols)] == code_OI[row].tolist()
    found_code, found_scale, found_zero = unpack_codes(layout, packed)
    np.testing.assert_array_equal(found_code, code_OI)
    np.testing.assert_array_equal(found_scale, scale_ON)
    assert found_zero is None
    meaning = {"uniform": [-1, 1], "ternary": [-1, 0, 1]}.get(levels, book_K)
    for rows_read in (slice(None), slice(rows // 2, rows)):
        weight_OI = dequantize(layout, packed, rows_read)
        for row, weight_I in zip(range(rows)[rows_read], weight_OI, strict=True):
            steps = [int(meaning[code]) for code in code_OI[row]]
            scales = scale_ON[row].astype(np.float32).repeat(group_size)
            assert weight_I.tolist() == (np.array(steps, np.float32) * scales).tolist()


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 50), st.sampled_from(OTHERS), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_shape_there_and_back(rows, groups, group_size, way, seed):
    layout = other_layout(rows, groups * group_size, group_size, *way)
    code_OI, scale_ON, book_K = random_other(layout, seed)
    packed = pack_codes(layout, code_OI, scale_ON, None, book_K)
    np.testing.assert_array_equal(unpack_codes(layout, packed)[0], code_OI)


@pytest.mark.parametrize(("cols", "group_size"), [(576, 64), (576, 576), (896, 128), (1536, 64), (1536, 96)])
def test_ternary_rows_waste_little(cols, group_size):
    """Groups do not end on whole bytes' worth of codes, rows do: less than a unit of 16 inputs above 1.6 bits."""
    layout = other_layout(16, cols, group_size, "ternary", 2)
    assert layout.payload_bytes - layout.num_groups * 32 <= layout.panel_bytes
    assert 8 * layout.panel_bytes / (16 * cols) <= 1.6 + 0.4 * 16 / cols


@pytest.mark.parametrize(("levels", "bits"), OTHERS)
def test_what_other_levels_cannot_be_is_told(levels, bits):
    good = other_layout(4, 32, 16, levels, bits).to_fields()
    with pytest.raises(PenjingError, match="no zero points") as caught:
        Layout.from_fields(good | {"symmetric": False}, where="here")
    assert caught.value.attempt == "--set symmetric=yes"
    if levels != "uniform":
        with pytest.raises(PenjingError, match="5 bits are not supported"):
            Layout.from_fields(good | {"bits": 5}, where="here")
        with pytest.raises(PenjingError, match="a float layout"):
            Layout.from_fields({"kind": "f16", "rows": 1, "cols": 1, "levels": levels}, where="here")
    for wrong in ("q4_k", None, ["book"]):
        with pytest.raises(PenjingError, match="unknown levels"):
            Layout.from_fields(good | {"levels": wrong}, where="here")


def test_books_must_fit():
    layout = other_layout(4, 32, 16, "book", 2)
    code_OI, scale_ON, book_K = random_other(layout)
    with pytest.raises(ValueError, match="needs one"):
        pack_codes(layout, code_OI, scale_ON, None)
    with pytest.raises(ValueError, match="a book must be"):
        pack_codes(layout, code_OI, scale_ON, None, book_K[:3])
    ternary = other_layout(4, 32, 16, "ternary", 2)
    with pytest.raises(ValueError, match="others have none"):
        pack_codes(ternary, code_OI.clip(0, 2), scale_ON, None, book_K)
    with pytest.raises(ValueError, match="a code of 3 where there are 3"):
        pack_codes(ternary, np.full_like(code_OI, 3), scale_ON, None)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [bits for bits in PLANES if bits > 1])
@pytest.mark.parametrize(("rows", "cols", "group_size"), SHAPES)
def test_packing_and_back(bits, rows, cols, group_size, symmetric, monkeypatch):
    monkeypatch.setattr("penjing.format.pack._CHUNK", 20 * cols)  # chunks of one panel
    layout = layout_of(rows, cols, group_size, bits, symmetric)
    code_OI, scale_ON, zero_ON = random_codes(layout)
    packed = pack_codes(layout, code_OI, scale_ON, zero_ON)
    for name, spec in layout.tensor_specs().items():
        assert packed[name].shape == spec.shape
    assert sum(array.nbytes for array in packed.values()) == layout.nbytes >= layout.payload_bytes
    found_code, found_scale, found_zero = unpack_codes(layout, packed)
    np.testing.assert_array_equal(found_code, code_OI)
    np.testing.assert_array_equal(found_scale, scale_ON)
    np.testing.assert_array_equal(found_zero, zero_ON)
    last = layout.num_panels - 1
    np.testing.assert_array_equal(unpack_codes(layout, packed, slice(last, None))[0], code_OI[LANES * last :])


@pytest.mark.parametrize("bits", PLANES)
def test_padding_is_zero(bits):
    """Lanes and inputs that do not exist have code 0 and scale 0: the kernels add them up."""
    layout = layout_of(5, 14, 7, bits)
    packed = pack_codes(layout, np.full((5, 14), (1 << bits) - 1, np.uint8), np.ones((5, 2), np.float16), None)
    ones = sum(int(byte).bit_count() for byte in packed["codes"].ravel())
    assert ones == 5 * 14 * bits
    assert not packed["scales"][:, :, 5:].any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [bits for bits in PLANES if bits > 1])
def test_dequantize_is_code_minus_zero_times_scale(bits, symmetric):
    layout = layout_of(35, 60, 12, bits, symmetric)
    code_OI, scale_ON, zero_ON = random_codes(layout)
    packed = pack_codes(layout, code_OI, scale_ON, zero_ON)
    wanted = np.empty((35, 60), np.float32)
    for row in range(35):
        for col in range(60):
            zero = 1 << bits - 1 if zero_ON is None else int(zero_ON[row, col // 12])
            wanted[row, col] = np.float32(int(code_OI[row, col]) - zero) * np.float32(scale_ON[row, col // 12])
    np.testing.assert_array_equal(dequantize(layout, packed), wanted)
    for rows in (slice(0, 0), slice(3, 4), slice(10, 34), slice(16, 32), slice(30, None), slice(9, 3)):
        np.testing.assert_array_equal(dequantize(layout, packed, rows), wanted[rows])


def test_a_matrix_packed_in_chunks_is_the_same():
    layout = layout_of(50, 48, 16, 5, symmetric=False)
    whole = pack_codes(layout, *random_codes(layout))
    code_OI, scale_ON, zero_ON = random_codes(layout)
    pieces = []
    for rows in (slice(0, 32), slice(32, 50)):
        chunk = dataclasses.replace(layout, rows=len(code_OI[rows]))
        pieces.append(pack_codes(chunk, code_OI[rows], scale_ON[rows], zero_ON[rows]))
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), array)


def test_wrong_arrays_are_refused():
    layout = layout_of(4, 32, 16, 4)
    code_OI, scale_ON, _ = random_codes(layout)
    with pytest.raises(ValueError, match="a code of 16 where there are 16"):
        pack_codes(layout, np.full_like(code_OI, 16), scale_ON, None)
    with pytest.raises(ValueError, match="codes must be"):
        pack_codes(layout, code_OI[:3], scale_ON, None)
    with pytest.raises(ValueError, match="scales must be"):
        pack_codes(layout, code_OI, scale_ON.astype(np.float32), None)
    with pytest.raises(ValueError, match="symmetric"):
        pack_codes(layout, code_OI, scale_ON, np.zeros((4, 2), np.uint8))
    with pytest.raises(ValueError, match="8 bits do not hold"):
        pack_codes(dataclasses.replace(layout, scale_bits=8), code_OI, np.full_like(scale_ON, 0.1), None)


def test_small_scales_take_half_the_bytes_and_come_back():
    layout = layout_of(17, 96, 32, 3)
    small = dataclasses.replace(layout, scale_bits=8)
    assert Layout.from_fields(small.to_fields(), where="") == small
    assert "scale_bits" not in layout.to_fields()  # files from before there was a choice stay the same bytes
    assert layout.nbytes - small.nbytes == 2 * 3 * 16
    assert layout.payload_bytes - small.payload_bytes == 17 * 3
    assert small.described.endswith("8-bit scales")
    code_OI, _, _ = random_codes(layout)
    scale_ON = np.resize(np.array([0.0, -1.875, 2.0**-17, 0.75]), (17, 3)).astype(np.float16)
    packed, wide = pack_codes(small, code_OI, scale_ON, None), pack_codes(layout, code_OI, scale_ON, None)
    assert packed["scales"].dtype == np.uint8
    np.testing.assert_array_equal(unpack_codes(small, packed)[1], scale_ON)
    np.testing.assert_array_equal(dequantize(small, packed), dequantize(layout, wide))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (16, 3), (17, 5), (50, 7)])
def test_floats_and_back(kind, rows, cols, monkeypatch):
    monkeypatch.setattr("penjing.format.pack._CHUNK", 20 * cols)
    layout = Layout(kind=kind, rows=rows, cols=cols)
    weight_OI = np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32)
    rounded = widen_floats(round_floats(weight_OI, kind), kind)
    packed = pack_float(layout, weight_OI)
    assert packed["weight"].shape == layout.tensor_specs()["weight"].shape
    assert packed["weight"].nbytes == layout.nbytes == layout.num_panels * layout.panel_bytes
    np.testing.assert_array_equal(unpack_float(layout, packed), rounded)
    np.testing.assert_array_equal(dequantize(layout, packed, slice(1, rows)), rounded[1:])
    for row in range(rows):  # [panel][input][lane]
        lane = np.ascontiguousarray(packed["weight"][row // 16, :, row % 16])
        np.testing.assert_array_equal(widen_floats(lane, kind), rounded[row])


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@settings(max_examples=500, deadline=None)
def test_bfloat16_is_rounded_to_nearest_even(value):
    torch = pytest.importorskip("torch")
    wanted = torch.tensor(value).bfloat16()
    if not wanted.isfinite():
        with pytest.raises(PenjingError, match="bfloat16"):
            round_floats(np.array([value], np.float32), "bf16")
        return
    found = round_floats(np.array([value], np.float32), "bf16")
    assert found.view(np.int16)[0] == wanted.view(torch.int16).item()


def test_halves_go_to_the_even_bfloat16():
    ties = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0xBF808000, 0xBF818000], np.uint32).view(np.float32)
    assert round_floats(ties, "bf16").tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF80, 0xBF82]


def test_floats_that_do_not_fit_are_told():
    layout = Layout(kind="f16", rows=1, cols=2)
    pack_float(layout, np.array([[65504, -65504]], np.float32))
    with pytest.raises(PenjingError, match="70000") as caught:
        pack_float(layout, np.array([[1, -70000]], np.float32), where="layers.3.down")
    assert caught.value.where == "layers.3.down"
    assert "bf16" in caught.value.attempt
    for bad in (np.nan, np.inf, -np.inf):
        for kind in ("f32", "f16", "bf16"):
            with pytest.raises(PenjingError, match="NaN or infinite"):
                round_floats(np.array([bad], np.float32), kind)


@pytest.mark.parametrize(
    ("cols", "group_size", "remedy"),
    [(96, 64, 48), (576, 128, 96), (576, 100, 96), (97, 64, 97), (30, 16, 30), (34, 8, 17), (7, 3, 7), (64, 0, 16)],
)
def test_ragged_rows_are_told_with_a_size_that_does(cols, group_size, remedy):
    with pytest.raises(PenjingError) as caught:
        check_group_size(cols, group_size, where="layers.3.down")
    assert caught.value.fact == f"group_size {group_size} does not divide {cols} inputs"
    assert caught.value.where == "layers.3.down"
    assert caught.value.attempt == f"--set group_size={remedy}"
    check_group_size(cols, remedy, where="")


def test_a_group_whose_sum_would_overflow_is_told():
    with pytest.raises(PenjingError, match="more than 65536"):
        check_group_size(1 << 17, 1 << 17, where="")


GOOD = {"kind": "codes", "rows": 4, "cols": 32, "bits": 4, "group_size": 16, "symmetric": False}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "q4_k"},
        {"kind": None},
        {"kind": ["codes"]},
        {"kind": "f16"},
        {"rows": 0},
        {"rows": -1},
        {"rows": 4.0},
        {"rows": True},
        {"rows": 1 << 60},
        {"cols": 1 << 40, "group_size": 1 << 40},
        {"bits": 7},
        {"bits": 4.0},
        {"bits": 0},
        {"group_size": 0},
        {"group_size": 5},
        {"group_size": "16"},
        {"symmetric": 0},
        {"symmetric": None},
        {"extra": 1},
    ],
)
def test_layouts_from_anyone_are_checked(change):
    assert Layout.from_fields(GOOD, where="") == Layout(**GOOD)
    with pytest.raises(PenjingError) as caught:
        Layout.from_fields(GOOD | change, where="the place")
    assert caught.value.where == "the place"


@pytest.mark.parametrize("fields", [None, [], {}, {"kind": "f16"}, "codes", {"rows": 1, "cols": 1}])
def test_layouts_that_are_none_are_told(fields):
    with pytest.raises(PenjingError, match="unreadable"):
        Layout.from_fields(fields, where="")
