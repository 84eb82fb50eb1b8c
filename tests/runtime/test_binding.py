"""Matrix products against float64, and every sentence with which the engine refuses a model."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

from penjing.errors import PenjingError
from penjing.format.pack import LANES, Layout, dequantize, pack_codes, pack_float
from penjing.runtime import binding
from penjing.runtime.reference import round_activations

EPS = float(np.finfo(np.float32).eps)


def describe(layout, packed, bias=None):
    return binding.Matrix(
        data=binding.pointer(packed.get("codes", packed.get("weight"))),
        scales=binding.pointer(packed.get("scales")),
        zeros=binding.pointer(packed.get("zeros")),
        bias=binding.pointer(bias),
        book=binding.pointer(packed.get("book")),
        levels=binding.LEVELS[layout.levels],
        kind=binding.KINDS[layout.kind],
        rows=layout.rows,
        cols=layout.cols,
        bits=layout.bits,
        group_size=layout.group_size,
        scale_bits=layout.scale_bits if layout.kind == "codes" else 0,
    )


def random_matrix(layout, rng):
    if layout.kind != "codes":
        return pack_float(layout, rng.standard_normal((layout.rows, layout.cols)).astype(np.float32))
    code = rng.integers(0, layout.num_codes, (layout.rows, layout.cols), dtype=np.uint8)
    book = rng.integers(-128, 128, 1 << layout.bits, dtype=np.int8) if layout.book_size else None
    groups = (layout.rows, layout.num_groups)
    zero = None if layout.symmetric else rng.integers(0, 256, groups, dtype=np.uint8)
    return pack_codes(layout, code, rng.uniform(0.01, 1, groups).astype(np.float16), zero, book)


SHAPES = [(1, 1, 1), (16, 16, 16), (17, 24, 8), (33, 60, 20), (48, 36, 36), (5, 96, 32)]


@pytest.mark.parametrize("columns", [1, 2, 5, 33])
@pytest.mark.parametrize(("rows", "cols", "group_size"), SHAPES)
@pytest.mark.parametrize("bits", [0, 2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_linear_is_the_product(rows, cols, group_size, bits, symmetric, columns):
    """bits 0: floats, f32 or bf16. The bound is the rounding of float32 sums: one step a term, and a few a scale."""
    rng = np.random.default_rng(rows * 1000 + cols)
    if bits:
        layout = Layout(kind="codes", rows=rows, cols=cols, bits=bits, group_size=group_size, symmetric=symmetric)
    else:
        layout = Layout(kind="f32" if symmetric else "bf16", rows=rows, cols=cols)
    packed = random_matrix(layout, rng)
    bias = rng.standard_normal(rows).astype(np.float32)
    x = rng.standard_normal((columns, cols)).astype(np.float32)
    got = binding.linear(describe(layout, packed, bias), x, threads=1 + columns % 3)
    weight = dequantize(layout, packed).astype(np.float64)
    seen = round_as_the_engine(x, group_size) if bits else x.astype(np.float64)
    expected = seen @ weight.T + bias
    largest = np.abs(seen) @ np.abs(weight).T + np.abs(bias)
    assert (np.abs(got - expected) <= (cols + 8) * EPS * largest).all()


@pytest.mark.parametrize("columns", [1, 2, 5, 33])
@pytest.mark.parametrize(("rows", "cols", "group_size"), SHAPES)
@pytest.mark.parametrize(("levels", "bits"), [("uniform", 1), ("ternary", 2), ("book", 2), ("book", 3), ("book", 4)])
def test_linear_of_other_levels_is_the_product(rows, cols, group_size, levels, bits, columns):
    rng = np.random.default_rng(rows * 1000 + cols + bits)
    layout = Layout(kind="codes", rows=rows, cols=cols, bits=bits, group_size=group_size, levels=levels)
    packed = random_matrix(layout, rng)
    x = rng.standard_normal((columns, cols)).astype(np.float32)
    weight = dequantize(layout, packed).astype(np.float64)
    seen = round_as_the_engine(x, group_size)
    largest = np.abs(seen) @ np.abs(weight).T
    got = binding.linear(describe(layout, packed), x, threads=1 + columns % 3)
    assert (np.abs(got - seen @ weight.T) <= (cols + 8) * EPS * largest).all()


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"levels": 3}, "levels 3 of 2 bits"),
        ({"levels": 1, "bits": 3}, "levels 1 of 3 bits"),
        ({"levels": 2, "bits": 5}, "levels 2 of 5 bits"),
        ({"book": None}, "a book missing or too many"),
        ({"levels": 0}, "a book missing or too many"),
        ({"levels": 1, "book": None, "zeros": 64}, "codes without zeros"),
        ({"levels": 0, "bits": 1, "book": None, "zeros": 64}, "codes without zeros"),
    ],
)
def test_levels_that_cannot_be_are_refused(change, fact):
    layout = Layout(kind="codes", rows=2, cols=16, bits=2, group_size=16, levels="book")
    packed = random_matrix(layout, np.random.default_rng(0))
    matrix = describe(layout, packed)
    for name, value in change.items():
        setattr(matrix, name, value)
    with pytest.raises(binding.EngineError, match=fact):
        binding.linear(matrix, np.zeros((1, 16), np.float32))


def round_as_the_engine(x, group_size):
    """`round_activations`, but codes found in float32 as the engine finds them: float64 may round a tie elsewhere."""
    x_G = x.reshape(len(x), -1, group_size)
    amax = np.abs(x_G).max(axis=-1, keepdims=True)
    codes = np.rint(x_G * (np.float32(127) / amax))
    rounded = (codes * (amax.astype(np.float64) / 127)).reshape(x.shape)
    steps = np.abs(rounded - round_activations(x.astype(np.float64), group_size)).reshape(x_G.shape) / (amax / 127)
    assert (steps < 1.001).all()
    assert (steps < 0.001).mean() > 0.99  # so hardly any differ, and those by one code
    return rounded


def test_linear_refuses_what_does_not_fit():
    layout = Layout(kind="f32", rows=2, cols=3)
    packed = random_matrix(layout, np.random.default_rng(0))
    matrix = describe(layout, packed)
    with pytest.raises(PenjingError, match="3 columns"):
        binding.linear(matrix, np.zeros((1, 4), np.float32))
    with pytest.raises(binding.EngineError, match="0 threads"):
        binding.linear(matrix, np.zeros((1, 3), np.float32), threads=0)
    with pytest.raises(binding.EngineError, match="0 columns"):
        binding.linear(matrix, np.zeros((0, 3), np.float32))


class Model:
    """A small valid description that a test spoils: 2 layers, floats, everything optional absent but the gate."""

    def __init__(self):
        self.keep = []
        self.layers = (binding.Layer * 2)()
        self.desc = binding.ModelDesc(
            struct_size=ctypes.sizeof(binding.ModelDesc),
            vocab_size=10,
            hidden_size=8,
            intermediate_size=12,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=4,
            num_ropes=1,
            norm_eps=1e-5,
            attention_scale=0.5,
            embedding_scale=1,
            residual_scale=1,
            logit_scale=1,
            embed=self.matrix(10, 8),
            final_norm=self.norm(),
            layers=self.layers,
        )
        self.desc.ropes[0] = binding.Rope(self.array(np.ones(2, np.float32)), 4, 1.0)
        sizes = {"q": (8, 8), "k": (4, 8), "v": (4, 8), "o": (8, 8), "gate": (12, 8), "up": (12, 8), "down": (8, 12)}
        for layer in self.layers:
            layer.attn_norm, layer.mlp_norm = self.norm(), self.norm()
            for part, size in sizes.items():
                setattr(layer, part, self.matrix(*size))

    def array(self, array):
        self.keep.append(array)
        return binding.pointer(array)

    def norm(self, **changes):
        return binding.Norm(**{"weight": self.array(np.ones(16, np.float32))} | changes)

    def matrix(self, rows, cols, /, **changes):
        data = self.array(np.zeros(-(-rows // LANES) * LANES * cols + 64, np.float32))
        return binding.Matrix(**{"data": data, "kind": 2, "rows": rows, "cols": cols} | changes)

    def codes(self, rows, cols, /, **changes):
        scales = self.array(np.zeros(-(-rows // LANES) * LANES * cols, np.float16))
        return self.matrix(
            rows, cols, **{"kind": 1, "scales": scales, "bits": 4, "group_size": 4, "scale_bits": 16} | changes
        )

    def create(self):
        handle = ctypes.c_void_p()
        status = binding.library().pj_model_create(ctypes.byref(self.desc), ctypes.byref(handle))
        assert bool(handle) == (status == 0)
        if handle:
            binding.library().pj_model_free(handle)
        binding.check(status)


def set_desc(**changes):
    return lambda model: [setattr(model.desc, name, value) for name, value in changes.items()]


def set_layer(**changes):
    """Of layer 1; a value may be a function of the model."""
    return lambda model: [
        setattr(model.layers[1], name, value(model) if callable(value) else value) for name, value in changes.items()
    ]


def set_rope(**changes):
    return lambda model: [setattr(model.desc.ropes[0], name, value) for name, value in changes.items()]


def down(**changes):
    return set_layer(down=lambda model: model.codes(8, 12, **changes))


def float_down(**changes):
    return set_layer(down=lambda model: model.matrix(8, 12, **changes))


REFUSED = {
    "struct_size": (set_desc(struct_size=8), r"a description of 8 bytes, where this library reads \d+"),
    "vocab_size": (set_desc(vocab_size=0), "vocab_size is 0"),
    "negative": (set_desc(hidden_size=-8), "hidden_size is -8"),
    "huge": (set_desc(intermediate_size=1 << 30), "intermediate_size is 1073741824"),
    "heads overflow": (set_desc(num_heads=1 << 20, head_dim=1 << 20), r"num_heads \* head_dim is 1099511627776"),
    "heads": (set_desc(num_heads=3, num_kv_heads=2), "3 heads do not share 2 key-value heads evenly"),
    "qk_norm": (set_desc(qk_norm=3), "unknown qk_norm 3"),
    "activation": (set_desc(activation=7), "unknown activation 7"),
    "ropes": (set_desc(num_ropes=9), "9 ropes, where at most 8 are known"),
    "layers": (set_desc(layers=None), "no layers"),
    "eps": (set_desc(norm_eps=float("nan")), "norm_eps is negative or not a number"),
    "infinite eps": (set_desc(norm_eps=float("inf")), "norm_eps is not finite"),
    "scale": (set_desc(logit_scale=float("inf")), "logit_scale is not finite"),
    "parallel scale": (set_desc(parallel=1, residual_scale=0.5), "a parallel block has no residual_scale"),
    "parallel norm": (
        lambda model: (set_desc(parallel=1)(model), set_layer(mlp_post_norm=Model.norm)(model)),
        "layers.1: a parallel block has no post norms",
    ),
    "rope odd": (set_rope(rotary_dim=3), "ropes.0: 3 rotated entries in heads of 4"),
    "rope wide": (set_rope(rotary_dim=6), "ropes.0: 6 rotated entries in heads of 4"),
    "rope null": (set_rope(inv_freq=None), "ropes.0: 4 rotated"),
    "rope scale": (set_rope(scale=float("nan")), "ropes.0: scale is not finite"),
    "rope index": (set_layer(rope=1), "layers.1.rope is 1"),
    "window": (set_layer(window=-1), "layers.1.window is -1"),
    "final norm": (set_desc(final_norm=binding.Norm()), "final_norm: absent"),
    "embed bias": (lambda model: setattr(model.desc.embed, "bias", model.desc.embed.data), "an embedding has no bias"),
    "head": (
        lambda model: setattr(model.desc, "head", model.matrix(9, 8)),
        "head: 9 outputs by 8 inputs, where 10",
    ),
    "absent": (set_layer(up=binding.Matrix()), "layers.1.up: absent"),
    "shape": (set_layer(k=lambda model: model.matrix(8, 8)), "layers.1.k: 8 outputs by 8 inputs, where 4 by 8 fit"),
    "kind": (float_down(kind=9), "layers.1.down: unknown kind 9"),
    "no rows": (float_down(rows=0), "layers.1.down: 0 outputs by 12 inputs"),
    "no data": (float_down(data=None), "layers.1.down: no weights"),
    "float scales": (float_down(scales=64), "layers.1.down: what codes have beside floats"),
    "unaligned": (float_down(data=66), "layers.1.down: weights are not aligned"),
    "unaligned bias": (float_down(bias=66), "layers.1.down: bias is not aligned"),
    "bits": (down(bits=7), "layers.1.down: 7 bits, where 1, 2, 3, 4, 5, 6 and 8 are known"),
    "group": (down(group_size=5), "layers.1.down: group_size 5 does not divide 12 inputs"),
    "no group": (down(group_size=0), "layers.1.down: group_size 0 does not divide 12 inputs"),
    "no scales": (down(scales=None), "layers.1.down: codes without scales"),
    "unaligned scales": (down(scales=65), "layers.1.down: scales are not aligned"),
    "scale bits": (down(scale_bits=4), "layers.1.down: scales of 4 bits"),
    "float scale bits": (float_down(scale_bits=16), "layers.1.down: what codes have beside floats"),
    "overflow": (
        down(cols=1 << 17, group_size=1 << 17),
        "layers.1.down: sums over groups of 131072 do",
    ),
    "norm bias": (
        set_layer(mlp_norm=lambda model: model.norm(bias=model.desc.final_norm.weight)),
        "layers.1.mlp_norm: RMSNorm has no bias",
    ),
    "bias alone": (
        set_layer(mlp_norm=lambda model: binding.Norm(None, model.desc.final_norm.weight)),
        "layers.1.mlp_norm: a bias without a weight",
    ),
    "norm unaligned": (set_layer(mlp_norm=binding.Norm(66)), "layers.1.mlp_norm: not aligned"),
    "q_norm there": (set_layer(q_norm=Model.norm), "layers.1.q_norm: there, but qk_norm is 0"),
    "q_norm absent": (set_desc(qk_norm=1), "layers.0.q_norm: absent, but qk_norm is 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_is_refused_by_name(case):
    spoil, message = REFUSED[case]
    model = Model()
    spoil(model)
    with pytest.raises(binding.EngineError, match=message) as error:
        model.create()
    assert error.value.status == binding.BAD_ARGUMENT


def test_the_model_that_they_spoil_is_fine():
    Model().create()
    codes = Model()
    down()(codes)
    codes.create()


def test_null_pointers_are_refused():
    engine, out = binding.library(), ctypes.c_void_p()
    assert engine.pj_model_create(None, ctypes.byref(out)) == binding.BAD_ARGUMENT
    assert engine.pj_session_create(None, 8, 1, 1, 2, ctypes.byref(out)) == binding.BAD_ARGUMENT
    assert engine.pj_forward(None, None, None, 0, None, 0) == binding.BAD_ARGUMENT
    assert engine.pj_session_truncate(None, 0, 0) == binding.BAD_ARGUMENT
    assert engine.pj_session_fork(None, 0, 0, 0) == binding.BAD_ARGUMENT
    assert engine.pj_session_export(None, 0, None) == binding.BAD_ARGUMENT
    assert engine.pj_session_import(None, 0, None, 0, 0) == binding.BAD_ARGUMENT
    assert binding.last_error() == "a null pointer"
    engine.pj_session_free(None)
    engine.pj_model_free(None)
    engine.pj_session_cancel(None)
    assert (
        engine.pj_session_length(None, 0)
        == engine.pj_session_bytes(None)
        == engine.pj_session_state_bytes(None, 1, 0)
        == engine.pj_session_least(None, 0)
        == 0
    )


def test_probes_measure_something_and_refuse_nonsense():
    engine = binding.library()
    assert 1e7 < engine.pj_probe_read(1 << 22, 2, 1) < 1e14
    assert 1e6 < engine.pj_probe_int8(1, 1) < 1e14
    assert engine.pj_probe_read(0, 1, 1) == engine.pj_probe_read(1 << 20, 0, 1) == engine.pj_probe_int8(-1, 1) == 0


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_a_missing_or_foreign_library_is_told(tmp_path):
    ask = "from penjing.runtime import binding\ntry: binding.library()\nexcept binding.PenjingError as e: print(e)"
    missing = run_python(ask, PENJING_LIBRARY=str(tmp_path / "no.so")).stdout
    assert "cannot load the engine" in missing
    assert "try:   pip install ." in missing
    foreign = run_python(ask, PENJING_LIBRARY=_ctypes.__file__).stdout
    assert "cannot load the engine" in foreign


def test_an_isa_can_be_forced_and_a_wrong_one_is_told():
    assert run_python("from penjing.runtime import binding; print(binding.isa())", PENJING_ISA="scalar").stdout == (
        "scalar\n"
    )
    wrong = run_python("from penjing.runtime import binding; binding.isa()", PENJING_ISA="sse9")
    assert "PENJING_ISA=sse9 cannot run here" in wrong.stderr
