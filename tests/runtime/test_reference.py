"""The numpy meaning of each kernel against other people's, and the decoder's cache against itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from penjing.format.architecture import Architecture, Rope
from penjing.runtime import reference

torch = pytest.importorskip("torch")
functional = torch.nn.functional


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def same(got, expected):
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-12, atol=1e-13)


def test_norms_are_torchs():
    x, weight, bias = random(5, 24), random(24, seed=1), random(24, seed=2)
    same(reference.rms_norm(x, weight, 1e-5), functional.rms_norm(tensor(x), (24,), tensor(weight), 1e-5))
    for b in (bias, None):
        expected = functional.layer_norm(tensor(x), (24,), tensor(weight), None if b is None else tensor(b), 1e-5)
        same(reference.layer_norm(x, weight, b, 1e-5), expected)


def test_activations_are_torchs():
    x = np.concatenate([random(100), [0.0, -30.0, 30.0]])
    same(reference.activate("silu", x), functional.silu(tensor(x)))
    same(reference.activate("gelu", x), functional.gelu(tensor(x)))
    same(reference.activate("gelu_tanh", x), functional.gelu(tensor(x), approximate="tanh"))


@pytest.mark.parametrize("window", [0, 1, 4, 50])
@pytest.mark.parametrize("queries", [1, 7, 20])
def test_attention_is_torchs(queries, window):
    q, k, v = random(queries, 6, 8), random(20, 2, 8, seed=1), random(20, 2, 8, seed=2)
    distance = np.arange(20 - queries, 20)[:, None] - np.arange(20)[None]
    seen = (distance >= 0) & ((distance < window) if window else True)
    expected = functional.scaled_dot_product_attention(
        *(tensor(x.transpose(1, 0, 2)) for x in (q, np.repeat(k, 3, axis=1), np.repeat(v, 3, axis=1))),
        attn_mask=tensor(seen),
        scale=1.0,
    )
    same(reference.attend(q, k, v, window=window), expected.transpose(0, 1))


def test_rotation_turns_pairs_and_keeps_the_rest():
    x = random(3, 2, 10)
    cos, sin = reference.rope_tables(Rope(inv_freq=(1.0, 0.25), scale=1.0), np.array([0, 1, 1000]))
    turned = reference.rotate(x, cos, sin)
    np.testing.assert_array_equal(turned[0], x[0])  # position 0 is not turned
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    pairs, turned_pairs = x[..., :2] + 1j * x[..., 2:4], turned[..., :2] + 1j * turned[..., 2:4]
    angle = np.array([[0, 0], [1, 0.25], [1000, 250]])[:, None]
    np.testing.assert_allclose(turned_pairs, pairs * np.exp(1j * angle), atol=1e-6)  # tables are float32


def test_rotary_tables_have_float32_angles_and_scale():
    cos, sin = reference.rope_tables(Rope(inv_freq=(0.1,), scale=1.5), np.array([100_003]))
    angle = float(np.float32(100_003) * np.float32(0.1))
    assert angle != 100_003 * 0.1
    assert cos[0, 0] == np.float32(np.cos(angle)) * np.float32(1.5)
    assert sin[0, 0] == np.float32(np.sin(angle)) * np.float32(1.5)


def test_rounded_activations_are_within_half_a_step():
    x = random(4, 24)
    x[1, :8] = 0
    rounded = reference.round_activations(x, 8)
    step = np.abs(x.reshape(4, 3, 8)).max(axis=-1, keepdims=True) / 127
    assert (np.abs(rounded - x).reshape(4, 3, 8) <= 0.5000001 * step).all()
    assert (rounded[1, :8] == 0).all()
    codes = rounded.reshape(4, 3, 8) / np.where(step > 0, step, 1)
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-9)


ARCH = Architecture(
    model_type="test",
    vocab_size=11,
    hidden_size=12,
    intermediate_size=20,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_position_embeddings=64,
    tied=True,
    attention_scale=0.4,
    ropes=(Rope(inv_freq=(1.0, 0.1)),),
    layer_rope=(0, -1),
    layer_window=(4, 0),
)


def weights_of(arch):
    rng = np.random.default_rng(0)
    sizes = arch.matrix_shapes() | {name: (size,) for name, size in arch.norm_sizes().items()}
    return {name: rng.standard_normal(size) / 3 for name, size in sizes.items()}


@pytest.mark.parametrize(
    "changes", [{}, {"parallel": True}, {"qk_norm": "full"}, {"pre_norm": False, "post_norm": True}]
)
def test_the_cache_changes_nothing(changes):
    arch = dataclasses.replace(ARCH, **changes)
    weights, tokens = weights_of(arch), [1, 5, 3, 10, 0, 7, 7, 2]
    whole = reference.Decoder(arch, weights).forward(tokens)
    decoder = reference.Decoder(arch, weights)
    parts = np.concatenate([decoder.forward(part) for part in (tokens[:3], tokens[3:4], tokens[4:])])
    np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-13)
    assert decoder.length == 8


def test_the_future_and_what_a_window_hides_change_nothing():
    arch = dataclasses.replace(ARCH, layer_window=(2, 2))
    weights = weights_of(arch)
    logits = reference.Decoder(arch, weights).forward([1, 2, 3, 4, 5, 6])
    later = reference.Decoder(arch, weights).forward([1, 2, 3, 9, 9, 9])
    np.testing.assert_array_equal(later[:3], logits[:3])
    earlier = reference.Decoder(arch, weights).forward([9, 9, 3, 4, 5, 6])  # two layers of 2 see 3 positions
    np.testing.assert_allclose(earlier[4:], logits[4:], rtol=1e-12)
    assert np.abs(earlier[3] - logits[3]).max() > 1e-6
