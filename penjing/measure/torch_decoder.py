"""Any `Architecture` in plain torch float32: what a packed model would say if arithmetic were exact enough.

A `.penjing` file has no Hugging Face config, so its simulation is computed from the architecture and the canonical
weights alone. Meaning of every step: format/architecture.py.

Shapes: T tokens of a window, C positions of a chunk, H hidden size, A heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from penjing.checkpoint import Checkpoint
from penjing.format.architecture import Architecture, Rope

#: logits held at a time: 64 MB
_CHUNK_LOGITS = 1 << 24
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}


class DecoderScorer:
    """Logits computed from canonical weights."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, Tensor],
        *,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        """`weights`: canonical names, biases included, to float32 tensors; those of what is called are enough.

        `observe` is told the name of each matrix and its inputs [T, I] before the product.
        """
        self._arch = architecture
        self._weights = weights
        self._observe = observe

    @property
    def vocab_size(self) -> int:
        return self._arch.vocab_size

    @torch.inference_mode()
    def hidden(self, tokens_T: Tensor) -> Tensor:
        """What the head sees, [T, H]."""
        x_TH = self.embed(tokens_T)
        for n in range(self._arch.num_layers):
            x_TH = self.layer(n, x_TH)
        return self.final_norm(x_TH)

    def embed(self, tokens_T: Tensor) -> Tensor:
        """What the first layer sees, [T, H]."""
        return self._weights["embed"][tokens_T] * self._arch.embedding_scale

    def layer(self, n: int, x_TH: Tensor) -> Tensor:
        """One window through one layer, [T, H]."""
        arch, layer = self._arch, f"layers.{n}."
        normed_TH = self._norm(layer + "attn_norm", x_TH) if arch.pre_norm else x_TH
        attended_TH = self._attention(n, normed_TH)
        before_TH = x_TH
        if arch.post_norm:
            attended_TH = self._norm(layer + "attn_post_norm", attended_TH)
        x_TH = x_TH + arch.residual_scale * attended_TH
        read_TH = before_TH if arch.parallel else x_TH
        changed_TH = self._mlp(layer, self._norm(layer + "mlp_norm", read_TH) if arch.pre_norm else read_TH)
        if arch.post_norm:
            changed_TH = self._norm(layer + "mlp_post_norm", changed_TH)
        return x_TH + arch.residual_scale * changed_TH

    def final_norm(self, x_TH: Tensor) -> Tensor:
        """What the head sees of what comes out of the last layer, [T, H]."""
        return self._norm("final_norm", x_TH)

    def head(self, x_TH: Tensor) -> Tensor:
        """Logits [T, V]."""
        return self._linear("embed" if self._arch.tied else "head", x_TH) * self._arch.logit_scale

    def logits(self, tokens_T: NDArray[np.int32]) -> Iterator[NDArray[np.float32]]:
        return self.logits_from(0, self.embed(torch.from_numpy(tokens_T.astype(np.int64))))

    def logits_from(self, first: int, x_TH: Tensor) -> Iterator[NDArray[np.float32]]:
        """Logits of every position of a window, in chunks; `x_TH` is what goes into layer `first`."""
        with torch.inference_mode():
            for n in range(first, self._arch.num_layers):
                x_TH = self.layer(n, x_TH)
            hidden_TH = self.final_norm(x_TH)
        chunk = max(1, _CHUNK_LOGITS // self.vocab_size)
        for start in range(0, len(hidden_TH), chunk):
            with torch.inference_mode():
                logit_CV = self.head(hidden_TH[start : start + chunk])
            yield logit_CV.numpy()

    def _linear(self, name: str, x_TI: Tensor) -> Tensor:
        if self._observe is not None:
            self._observe(name, x_TI)
        return functional.linear(x_TI, self._weights[name], self._weights.get(f"{name}.bias"))

    def _norm(self, name: str, x_TH: Tensor) -> Tensor:
        weight_H, epsilon = self._weights[name], self._arch.norm_eps
        if self._arch.norm == "layer" and not name.endswith(("q_norm", "k_norm")):
            return functional.layer_norm(x_TH, weight_H.shape, weight_H, self._weights.get(f"{name}.bias"), epsilon)
        return functional.rms_norm(x_TH, weight_H.shape, weight_H, epsilon)

    def _mlp(self, layer: str, x_TH: Tensor) -> Tensor:
        activate = _ACTIVATIONS[self._arch.activation]
        up_TI = self._linear(layer + "up", x_TH)
        inner_TI = activate(self._linear(layer + "gate", x_TH)) * up_TI if self._arch.gated else activate(up_TI)
        return self._linear(layer + "down", inner_TI)

    def _attention(self, n: int, x_TH: Tensor) -> Tensor:
        arch, layer = self._arch, f"layers.{n}."
        q_ATD, k_ATD = (self._query_or_key(n, name, x_TH) for name in ("q", "k"))
        v_ATD = self._linear(layer + "v", x_TH).reshape(len(x_TH), -1, arch.head_dim).transpose(0, 1)
        mixed_ATD = functional.scaled_dot_product_attention(
            q_ATD[None],
            k_ATD[None],
            v_ATD[None],
            attn_mask=_visible(len(x_TH), arch.layer_window[n]),
            scale=arch.attention_scale,
            enable_gqa=True,
        )[0]
        return self._linear(layer + "o", mixed_ATD.transpose(0, 1).flatten(1))

    def _query_or_key(self, n: int, name: str, x_TH: Tensor) -> Tensor:
        arch, layer = self._arch, f"layers.{n}."
        flat = self._linear(layer + name, x_TH)
        if arch.qk_norm == "full":
            flat = self._norm(f"{layer}{name}_norm", flat)
        heads_TAD = flat.reshape(len(x_TH), -1, arch.head_dim)
        if arch.qk_norm == "head":
            heads_TAD = self._norm(f"{layer}{name}_norm", heads_TAD)
        heads_ATD = heads_TAD.transpose(0, 1)
        rope = arch.layer_rope[n]
        return _rotate(arch.ropes[rope], heads_ATD) if rope >= 0 else heads_ATD


def _visible(count: int, window: int) -> Tensor:
    """[query, key]: what each position sees."""
    distance = torch.arange(count)[:, None] - torch.arange(count)
    return (distance >= 0) & (distance < window) if window else distance >= 0


def _rotate(rope: Rope, heads_ATD: Tensor) -> Tensor:
    """Turn the pairs (j, j + R/2) of the first R entries of each head; the rest stays."""
    inv_freq = torch.tensor(rope.inv_freq, dtype=torch.float32)
    angle = torch.arange(heads_ATD.shape[1], dtype=torch.float32)[:, None] * inv_freq
    cos, sin = angle.cos() * rope.scale, angle.sin() * rope.scale
    half = len(rope.inv_freq)
    first, second, rest = heads_ATD[..., :half], heads_ATD[..., half : 2 * half], heads_ATD[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def scorer(checkpoint: Checkpoint) -> DecoderScorer:
    """A checkpoint of any kind, its weights as float32."""
    weights = {part.name: torch.from_numpy(checkpoint.read_part(part)) for part in checkpoint.parts()}
    return DecoderScorer(checkpoint.architecture, weights)
