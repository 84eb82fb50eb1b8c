"""Small random models for tests of the engine: the same numbers for the reference and packed for the engine."""

from __future__ import annotations

import numpy as np

from penjing.format.architecture import Architecture, Rope
from penjing.format.pack import Layout, dequantize, pack_codes, pack_float
from penjing.runtime.reference import Decoder
from penjing.runtime.session import Session

BASE = Architecture(
    model_type="test",
    vocab_size=37,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=512,
    tied=True,
    attention_scale=8**-0.5,
    ropes=(Rope(inv_freq=(1.0, 0.1, 0.03, 0.002)),),
    layer_rope=(0, 0),
    layer_window=(0, 0),
)

#: every feature of architecture.py, alone or as the families combine them
FEATURES = {
    "plain": {},
    "untied": {"tied": False},
    "layer norm": {"norm": "layer", "norm_eps": 1e-3},
    "head norm": {"qk_norm": "head"},
    "full norm": {"qk_norm": "full"},
    "post norm only": {"pre_norm": False, "post_norm": True, "qk_norm": "full"},
    "pre and post norm": {"post_norm": True, "qk_norm": "head", "activation": "gelu_tanh", "embedding_scale": 4.9},
    "parallel": {"parallel": True, "norm": "layer", "gated": False, "activation": "gelu", "tied": False},
    "plain mlp": {"gated": False, "activation": "gelu"},
    "scales": {"embedding_scale": 2.5, "residual_scale": 0.22, "logit_scale": 0.125, "attention_scale": 0.3},
    "part of a head rotated": {"ropes": (Rope(inv_freq=(1.0, 0.01)),)},
    "two ropes": {
        "ropes": (Rope(inv_freq=(1.0, 0.1)), Rope(inv_freq=(0.5, 0.3, 0.1), scale=1.2)),
        "layer_rope": (1, 0),
    },
    "no rope": {"layer_rope": (-1, 0)},
    "window": {"layer_window": (5, 0)},
    "window of one": {"layer_window": (1, 17)},
    "one key-value head": {"num_kv_heads": 1},
    "no sharing": {"num_kv_heads": 4},
    "odd sizes": {"hidden_size": 19, "intermediate_size": 23, "head_dim": 6, "ropes": (Rope(inv_freq=(1.0, 0.1)),)},
    "wide heads": {"head_dim": 40, "num_heads": 3, "num_kv_heads": 3},
}


def bias_names(arch):
    names = [name for name in arch.matrix_shapes() if name != "embed"]
    if arch.norm == "layer":
        names += [name for name in arch.norm_sizes() if not name.endswith(("q_norm", "k_norm"))]
    return names


class Tiny:
    """A random model: `weights` for the reference, `layouts` and `tensors` for the engine, which are the same numbers.

    `layout_of(name, rows, cols)` says how a matrix is stored. All biases that may be there are there.
    """

    def __init__(self, arch, layout_of=None, *, seed=0, biases=True):
        self.arch = arch
        self.rng = np.random.default_rng(seed)
        self.layouts, self.tensors, self.weights = {}, {}, {}
        for name, (rows, cols) in arch.matrix_shapes().items():
            layout = layout_of(name, rows, cols) if layout_of else Layout(kind="f32", rows=rows, cols=cols)
            self.layouts[name] = layout
            packed = self.random_codes(layout) if layout.kind == "codes" else self.random_floats(layout)
            self.tensors |= {f"{name}.{suffix}": array for suffix, array in packed.items()}
            self.weights[name] = dequantize(layout, packed)
        for name, size in arch.norm_sizes().items():
            self.vector(name, 1 + 0.3 * self.rng.standard_normal(size))
        for name in bias_names(arch) if biases else ():
            size = arch.norm_sizes().get(name) or arch.matrix_shapes()[name][0]
            self.vector(f"{name}.bias", 0.1 * self.rng.standard_normal(size))

    def vector(self, name, values):
        self.tensors[name] = self.weights[name] = values.astype(np.float32)

    def random_floats(self, layout):
        weight = self.rng.standard_normal((layout.rows, layout.cols)) / np.sqrt(layout.cols)
        return pack_float(layout, weight.astype(np.float32))

    def random_codes(self, layout):
        groups = (layout.rows, layout.num_groups)
        code = self.rng.integers(0, layout.num_codes, (layout.rows, layout.cols), dtype=np.uint8)
        scale = (self.rng.uniform(0.5, 1.5, groups) * 2 / 2**layout.bits / np.sqrt(layout.cols)).astype(np.float16)
        zero = None if layout.symmetric else self.rng.integers(0, 1 << layout.bits, groups, dtype=np.uint8)
        book = self.rng.integers(-2, 3, 1 << layout.bits, dtype=np.int8) if layout.book_size else None
        return pack_codes(layout, code, scale, zero, book)

    def session(self, **options):
        options = {"context": 64, "threads": 1, "kv": "f32"} | options
        return Session.from_tensors(self.arch, self.layouts, self.tensors, **options)

    def reference(self, dtype=np.float64, **options):
        rounded = {name: layout.group_size for name, layout in self.layouts.items() if layout.kind == "codes"}
        return Decoder(self.arch, self.weights, dtype=dtype, rounded=rounded, **options)

    def tokens(self, count, seed=1):
        return np.random.default_rng(seed).integers(0, self.arch.vocab_size, count)


def codes_layout(bits=4, group_size=8, symmetric=True):
    def layout_of(name, rows, cols):
        return Layout(kind="codes", rows=rows, cols=cols, bits=bits, group_size=group_size, symmetric=symmetric)

    return layout_of


def mixed_layout(name, rows, cols):
    """Readers of one input that differ in everything: codes of three group sizes, floats of three kinds."""
    part = name.rsplit(".", 1)[-1]
    codes = {"q": (4, 8), "k": (3, 12), "v": (6, 24), "o": (5, 16), "up": (2, 4), "embed": (8, 24)}
    if part in codes:
        bits, group_size = codes[part]
        return Layout(kind="codes", rows=rows, cols=cols, bits=bits, group_size=group_size, symmetric=part in "qvo")
    return Layout(kind={"gate": "f16", "down": "bf16"}.get(part, "f32"), rows=rows, cols=cols)


def assert_close(got, tiny, tokens, **options):
    """Within what float32 does to this very model: the float32 reference's distance from the float64 one, times 8.

    Both are the same sums in other orders, so their errors are of one size; 8 covers the luck of the largest of a few
    thousand logits, and a code that rounds the other way.
    """
    exact = tiny.reference(**options).forward(tokens)[-len(got) :]
    rough = tiny.reference(np.float32, **options).forward(tokens)[-len(got) :]
    tolerance = 8 * np.abs(rough - exact).max() + 8 * np.finfo(np.float32).eps * np.abs(exact).max()
    assert tolerance < 0.02 * np.abs(exact).max()  # else the comparison says nothing
    assert np.abs(got - exact).max() <= tolerance


def assert_near_rounded(got, tiny, tokens, kv=None):
    """Where activations are rounded to 8 bits, float32 noise moves a few of them across a boundary, each by a whole
    step; that moves others, so after some matrices the engine's roundings and the reference's are as good as
    independent: their results may differ by sqrt(2) times what rounding does to this model. A wrong scale, zero point
    or order of codes changes as much as the logits are large.
    """
    exact = tiny.reference(kv=kv).forward(tokens)
    smooth = Decoder(tiny.arch, tiny.weights).forward(tokens)
    effect = np.sqrt(np.mean((smooth - exact) ** 2))
    error = np.sqrt(np.mean((got - exact) ** 2))
    assert 0 < effect < 0.1 * np.sqrt(np.mean(exact**2))
    assert error < 1.5 * effect
