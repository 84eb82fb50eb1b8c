"""What a decoder computes, in plain numbers: the same for every model family.

A family file (`families/`) turns a Hugging Face config into an `Architecture` and says which Hugging Face
tensor holds each weight; everything after that (packing, the engine, the reference) sees only this.

Canonical weight names, matrices are (outputs, inputs):
    embed, head (absent when tied), final_norm,
    layers.N.{attn_norm, q, k, v, o, q_norm, k_norm, attn_post_norm, mlp_norm, gate, up, down, mlp_post_norm}
Any of them may have a `.bias` beside it. A plain (not gated) MLP has `up` and `down` only.

One layer, where absent parts are skipped:
    parallel:    x + attn(attn_norm(x)) + mlp(mlp_norm(x))
    otherwise:   x = x + residual_scale * attn_post_norm(attn(attn_norm(x)))
                 x = x + residual_scale * mlp_post_norm(mlp(mlp_norm(x)))
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from penjing.errors import PenjingError

#: matrices of a layer, in the order they are used
LAYER_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
#: vectors of a layer
LAYER_NORMS = ("attn_norm", "q_norm", "k_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm")


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary embedding: angle[position, j] = position * inv_freq[j]; cos and sin are multiplied by `scale`.

    `inv_freq` has rotary_dim / 2 entries; head entries j and j + rotary_dim / 2 form a pair (rotate-half).
    """

    inv_freq: tuple[float, ...]
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder. Sizes are counts of elements."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    tied: bool  # head and embedding are one matrix
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    qk_norm: Literal["none", "head", "full"] = "none"  # over each head, or over all heads at once; always RMS
    pre_norm: bool = True  # attn_norm, mlp_norm exist
    post_norm: bool = False  # attn_post_norm, mlp_post_norm exist
    parallel: bool = False
    gated: bool = True  # down(act(gate(x)) * up(x)), else down(act(up(x)))
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    attention_scale: float  # multiplies q·k
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0  # multiplies the logits
    ropes: tuple[Rope, ...] = ()
    layer_rope: tuple[int, ...]  # index into ropes, -1: no position in this layer
    layer_window: tuple[int, ...]  # a query sees this many positions including its own; 0: all
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None  # prepended to a plain prompt when the tokenizer does it

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """Every matrix that must be there: canonical name to (outputs, inputs)."""
        hidden, inner = self.hidden_size, self.intermediate_size
        layer = {
            "q": (self.q_size, hidden),
            "k": (self.kv_size, hidden),
            "v": (self.kv_size, hidden),
            "o": (hidden, self.q_size),
            "up": (inner, hidden),
            "down": (hidden, inner),
        }
        if self.gated:
            layer["gate"] = (inner, hidden)
        shapes = {"embed": (self.vocab_size, hidden)}
        if not self.tied:
            shapes["head"] = (self.vocab_size, hidden)
        for n in range(self.num_layers):
            shapes |= {f"layers.{n}.{part}": layer[part] for part in LAYER_MATRICES if part in layer}
        return shapes

    def norm_sizes(self) -> dict[str, int]:
        """Every norm weight that must be there: canonical name to its length."""
        hidden = self.hidden_size
        layer: dict[str, int] = {}
        if self.pre_norm:
            layer |= {"attn_norm": hidden, "mlp_norm": hidden}
        if self.post_norm:
            layer |= {"attn_post_norm": hidden, "mlp_post_norm": hidden}
        if self.qk_norm == "head":
            layer |= {"q_norm": self.head_dim, "k_norm": self.head_dim}
        if self.qk_norm == "full":
            layer |= {"q_norm": self.q_size, "k_norm": self.kv_size}
        sizes = {f"layers.{n}.{part}": size for n in range(self.num_layers) for part, size in layer.items()}
        return sizes | {"final_norm": hidden}

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Architecture:
        """Read what `to_json` wrote. Raises PenjingError on anything else; values are checked by `validate`."""
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["ropes"] = tuple(
                Rope(inv_freq=tuple(map(float, rope["inv_freq"])), scale=float(rope["scale"]))
                for rope in fields["ropes"]
            )
            for name in ("layer_rope", "layer_window", "eos_token_ids"):
                fields[name] = tuple(map(int, fields[name]))
            arch = cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise PenjingError(
                f"unreadable architecture: {error}", where=where, attempt="pack the model again"
            ) from error
        arch.validate(where=where)
        return arch

    def validate(self, *, where: str) -> None:
        """Raise PenjingError unless the numbers can describe a decoder that the engine accepts."""
        problem = self._problem()
        if problem:
            raise PenjingError(f"impossible architecture: {problem}", where=where, attempt="pack the model again")

    def _problem(self) -> str:
        limit = 1 << 24  # far beyond any real model, small enough that no product of two overflows 64 bits
        for name, hint in (
            ("vocab_size", 1),
            ("hidden_size", 1),
            ("intermediate_size", 1),
            ("num_layers", 1),
            ("num_heads", 1),
            ("num_kv_heads", 1),
            ("head_dim", 2),
            ("max_position_embeddings", 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or not hint <= value <= limit:
                return f"{name} is {value!r}"
        if self.num_heads % self.num_kv_heads:
            return f"{self.num_heads} heads do not share {self.num_kv_heads} key-value heads evenly"
        if len(self.layer_rope) != self.num_layers or len(self.layer_window) != self.num_layers:
            return (
                f"{self.num_layers} layers, but {len(self.layer_rope)} rope and {len(self.layer_window)} window entries"
            )
        if any(not -1 <= index < len(self.ropes) for index in self.layer_rope):
            return "a layer names a rope that is not there"
        if any(not 0 <= window <= limit for window in self.layer_window):
            return "a negative attention window"
        if any(not 1 <= len(rope.inv_freq) <= self.head_dim // 2 for rope in self.ropes):
            return f"a rope that does not fit heads of {self.head_dim}"
        if not all(math.isfinite(value) for rope in self.ropes for value in (*rope.inv_freq, rope.scale)):
            return "a rope that is not of finite numbers"
        scales = (self.norm_eps, self.attention_scale, self.embedding_scale, self.residual_scale, self.logit_scale)
        if not all(isinstance(scale, (int, float)) and abs(scale) < 1e6 for scale in scales):  # also false for NaN
            return "a scale that is not a finite number"
        for name, allowed in (
            ("norm", ("rms", "layer")),
            ("qk_norm", ("none", "head", "full")),
            ("activation", ("silu", "gelu", "gelu_tanh")),
        ):
            if getattr(self, name) not in allowed:
                return f"{name} is {getattr(self, name)!r}"
        for name in ("tied", "pre_norm", "post_norm", "parallel", "gated"):
            if type(getattr(self, name)) is not bool:
                return f"{name} is {getattr(self, name)!r}"
        return self._token_problem(limit)

    def _token_problem(self, limit: int) -> str:
        bos = () if self.bos_token_id is None else (self.bos_token_id,)
        if any(type(token) is not int or not 0 <= token <= limit for token in (*self.eos_token_ids, *bos)):
            return "a token that is not a number of one"
        return "" if isinstance(self.model_type, str) else f"model_type is {self.model_type!r}"
