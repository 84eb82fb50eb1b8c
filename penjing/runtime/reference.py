"""What the engine computes, in numpy: slow, obvious, and in float64 unless asked otherwise.

Every kernel's meaning is a function here, the decoder is their composition in the order that
`penjing/format/architecture.py` tells. Shapes: T tokens (queries), S positions seen (keys), O outputs, I inputs,
G inputs of a group, H query heads, K key-value heads, D entries of a head, R rotated pairs, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penjing.format.architecture import Architecture, Rope

SPAN: Final = 64  # positions of one step of the softmax
Array = NDArray[Any]  # float32 or float64, as the decoder was asked for

_erf: Final = np.vectorize(math.erf, otypes=[np.float64])


def round_activations(x: Array, group_size: int) -> Array:
    """x with each group of the last axis as 8-bit codes times amax / 127: what the engine's matrices read."""
    x_G = x.reshape(*x.shape[:-1], -1, group_size)
    amax = np.abs(x_G).max(axis=-1, keepdims=True)
    step = np.where(amax > 0, amax, 1) / 127
    codes = np.rint(x_G / step)
    rounded: Array = (codes * step).reshape(x.shape)
    return rounded


def round_head_input(x: Array, group_size: int) -> Array:
    """The same in two rounds, the second for what the first left over: what the engine's head reads."""
    first = round_activations(x, group_size)
    both: Array = first + round_activations(x - first, group_size)
    return both


def round_cached(x_TKD: Array) -> Array:
    """Keys or values as 8-bit codes, a scale for each position and head: what the engine keeps as `i8`."""
    return round_activations(x_TKD, x_TKD.shape[-1])


def usual_cache(names: Iterable[str]) -> Any:
    """`kv` of a Decoder as the engine has it for kv="auto", for the names of a model's tensors."""
    return np.float16 if any(name.endswith(".k.bias") for name in names) else round_cached


def linear(x_TI: Array, weight_OI: Array, bias_O: Array | None = None) -> Array:
    y_TO = x_TI @ weight_OI.T
    return y_TO if bias_O is None else y_TO + bias_O


def lora(x_TI: Array, a_RI: Array, b_OR: Array) -> Array:
    """What an adapter adds to a matrix's outputs; it reads x before it is rounded to 8 bits."""
    added: Array = x_TI @ a_RI.T @ b_OR.T
    return added


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    normed: Array = x / np.sqrt(mean_square + x.dtype.type(eps)) * weight
    return normed


def layer_norm(x: Array, weight: Array, bias: Array | None, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    normed: Array = centred / np.sqrt(variance + x.dtype.type(eps)) * weight
    return normed if bias is None else normed + bias


def rope_tables(rope: Rope, positions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin [T, R] as transformers has them: the angle is a float32 product, the scale a float32 factor."""
    angle_TR = positions[:, None].astype(np.float32) * np.array(rope.inv_freq, np.float32)
    scale = np.float32(rope.scale)
    wide_TR = angle_TR.astype(np.float64)
    return np.cos(wide_TR).astype(np.float32) * scale, np.sin(wide_TR).astype(np.float32) * scale


def rotate(x_THD: Array, cos_TR: NDArray[np.float32], sin_TR: NDArray[np.float32]) -> Array:
    """Pairs (j, j + R) of each head turned by their angle; entries from 2 R on stay."""
    half = cos_TR.shape[1]
    cos, sin = cos_TR[:, None].astype(x_THD.dtype), sin_TR[:, None].astype(x_THD.dtype)
    low, high, rest = x_THD[..., :half], x_THD[..., half : 2 * half], x_THD[..., 2 * half :]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)


def round_weights(weight_TS: Array, v_SD: Array) -> Array:
    """Softmax weights as 8-bit codes, a scale for each query and span; each counts times the scale of its value."""
    scale_S = np.abs(v_SD).max(axis=1) / 127
    scale_S = np.where(scale_S > 0, scale_S, 1)  # a value that is 0 counts for nothing, however rounded
    missing = -len(v_SD) % SPAN
    scaled_TS = np.pad(weight_TS * scale_S, [(0, 0), (0, missing)])
    rounded: Array = round_activations(scaled_TS, SPAN)[:, : len(v_SD)] / scale_S
    return rounded


def attend(q_THD: Array, k_SKD: Array, v_SKD: Array, *, window: int, coded: bool = False) -> Array:
    """Causal softmax attention, the queries being the last T of S positions and already scaled. [T, H, D]

    A query sees `window` positions, its own included; 0: all up to its own. Query heads share key-value heads in order.
    coded: keys and values are codes, and the queries and softmax weights are rounded to such as well.
    """
    num_queries, num_heads, _ = q_THD.shape
    num_keys, num_kv, _ = k_SKD.shape
    group = num_heads // num_kv
    query_T1 = np.arange(num_keys - num_queries, num_keys)[:, None]
    key_1S = np.arange(num_keys)[None]
    seen_TS = key_1S <= query_T1
    if window:
        seen_TS &= key_1S > query_T1 - window
    out = np.empty_like(q_THD)
    read_THD = round_cached(q_THD) if coded else q_THD
    for head in range(num_heads):
        v_SD = v_SKD[:, head // group]
        score_TS = np.where(seen_TS, read_THD[:, head] @ k_SKD[:, head // group].T, -np.inf)
        weight_TS = np.exp(score_TS - score_TS.max(axis=1, keepdims=True))
        total_T1 = weight_TS.sum(axis=1, keepdims=True)
        out[:, head] = (round_weights(weight_TS, v_SD) if coded else weight_TS) @ v_SD / total_T1
    return out


def activate(name: str, x: Array) -> Array:
    if name == "silu":
        gate = 1 / (1 + np.exp(-x))
    elif name == "gelu":
        gate = ((1 + _erf(x / math.sqrt(2))) / 2).astype(x.dtype)
    else:
        gate = (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    activated: Array = x * gate
    return activated


class Decoder:
    """A decoder with its cache. `forward(tokens)` appends them and gives logits [T, V] of all of them.

    weights: canonical names (see architecture.py) to arrays, matrices [O, I].
    rounded: name of a matrix ("embed": a tied head) to the group size in which its input is rounded to 8 bits;
    others read it as it is.
    kv: what keeping them does to keys and values [T, K, D]: a numpy type, or `round_cached`.
    adapter: names of matrices to A [R, I] and B [O, R], added as `lora`.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, NDArray[Any]],
        *,
        dtype: type[np.floating[Any]] = np.float64,
        rounded: Mapping[str, int] | None = None,
        kv: Callable[[Array], Array] | None = None,
        adapter: Mapping[str, tuple[Array, Array]] | None = None,
    ) -> None:
        self.architecture = architecture
        self.dtype = dtype
        self.rounded = dict(rounded or {})
        self.kept: Callable[[Array], Array] = kv or (lambda x: x)
        self.adapter = {name: (a.astype(dtype), b.astype(dtype)) for name, (a, b) in (adapter or {}).items()}
        self.weights = {name: weight.astype(dtype) for name, weight in weights.items()}
        empty = np.empty((0, architecture.num_kv_heads, architecture.head_dim), dtype)
        self.keys = [empty] * architecture.num_layers
        self.values = [empty] * architecture.num_layers

    @property
    def length(self) -> int:
        return len(self.keys[0])

    def forward(self, tokens: Any) -> Array:
        arch = self.architecture
        x = self.weights["embed"][np.asarray(tokens)] * self.dtype(arch.embedding_scale)
        positions = np.arange(self.length, self.length + len(x))
        for n in range(arch.num_layers):
            x = self._layer(n, x, positions)
        head = "embed" if arch.tied else "head"
        logits: Array = self._linear(head, self._norm("final_norm", x), round_head_input) * self.dtype(arch.logit_scale)
        return logits

    def _layer(self, n: int, x: Array, positions: NDArray[np.int64]) -> Array:
        arch, prefix = self.architecture, f"layers.{n}."
        attn_in = self._norm(prefix + "attn_norm", x) if arch.pre_norm else x
        attn = self._attention(n, attn_in, positions)
        if arch.parallel:
            mlp_in = self._norm(prefix + "mlp_norm", x) if arch.pre_norm else x
            out: Array = x + attn + self._mlp(prefix, mlp_in)
            return out
        scale = self.dtype(arch.residual_scale)
        x = x + scale * (self._norm(prefix + "attn_post_norm", attn) if arch.post_norm else attn)
        mlp = self._mlp(prefix, self._norm(prefix + "mlp_norm", x) if arch.pre_norm else x)
        out = x + scale * (self._norm(prefix + "mlp_post_norm", mlp) if arch.post_norm else mlp)
        return out

    def _attention(self, n: int, x_TI: Array, positions: NDArray[np.int64]) -> Array:
        arch, prefix, num = self.architecture, f"layers.{n}.", len(x_TI)
        q, k, v = (self._linear(prefix + part, x_TI) for part in ("q", "k", "v"))
        if arch.qk_norm == "full":
            q, k = self._rms(prefix + "q_norm", q), self._rms(prefix + "k_norm", k)
        q = q.reshape(num, arch.num_heads, arch.head_dim)
        k, v = (kv.reshape(num, arch.num_kv_heads, arch.head_dim) for kv in (k, v))
        if arch.qk_norm == "head":
            q, k = self._rms(prefix + "q_norm", q), self._rms(prefix + "k_norm", k)
        if arch.layer_rope[n] >= 0:
            cos_TR, sin_TR = rope_tables(arch.ropes[arch.layer_rope[n]], positions)
            q, k = rotate(q, cos_TR, sin_TR), rotate(k, cos_TR, sin_TR)
        self.keys[n] = np.concatenate([self.keys[n], self.kept(k).astype(self.dtype)])
        self.values[n] = np.concatenate([self.values[n], self.kept(v).astype(self.dtype)])
        q = q * self.dtype(arch.attention_scale)
        coded = self.kept is round_cached
        out = attend(q, self.keys[n], self.values[n], window=arch.layer_window[n], coded=coded)
        return self._linear(prefix + "o", out.reshape(num, -1))

    def _mlp(self, prefix: str, x_TI: Array) -> Array:
        arch = self.architecture
        up = self._linear(prefix + "up", x_TI)
        if arch.gated:
            inner = activate(arch.activation, self._linear(prefix + "gate", x_TI)) * up
        else:
            inner = activate(arch.activation, up)
        return self._linear(prefix + "down", inner)

    def _norm(self, name: str, x: Array) -> Array:
        eps = self.architecture.norm_eps
        if self.architecture.norm == "rms":
            return rms_norm(x, self.weights[name], eps)
        return layer_norm(x, self.weights[name], self.weights.get(name + ".bias"), eps)

    def _rms(self, name: str, x: Array) -> Array:
        return rms_norm(x, self.weights[name], self.architecture.norm_eps)

    def _linear(self, name: str, x_TI: Array, rounding: Callable[[Array, int], Array] = round_activations) -> Array:
        group_size = self.rounded.get(name)
        read_TI = rounding(x_TI, group_size) if group_size else x_TI
        y_TO = linear(read_TI, self.weights[name], self.weights.get(name + ".bias"))
        return y_TO + lora(x_TI, *self.adapter[name]) if name in self.adapter else y_TO
