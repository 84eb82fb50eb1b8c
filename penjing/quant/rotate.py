"""Rotations folded into the weights, so that no channel stands out: QuaRot (2404.00456), SpinQuant (2405.16406).

`heads`: value channels of each head turn (R2), in the rows of v and back in the columns of o: always free.
`residual`: the stream between layers turns (R1). Every norm weight goes into the matrices that read the norm first,
for only a plain RMS norm commutes with a rotation. The embedding and what o and down add are turned, readers are turned
back. A head tied to the embedding cannot stay so: it would need the final norm's weight where the embedding must not.
So a tied model comes out with a head of its own, whose bytes are to be weighed against what is won.

Shapes: O outputs, I inputs, H hidden size, D head size, A heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.errors import PenjingError
from penjing.format.architecture import Architecture
from penjing.tensors.rotations import rotation


@dataclass(frozen=True, kw_only=True)
class Spec:
    """heads: turn value heads. residual: turn the residual stream. seed: of random signs."""

    heads: bool = True
    residual: bool = False
    seed: int = 0


def unties(spec: Spec, architecture: Architecture) -> bool:
    """Whether the head becomes a matrix of its own."""
    return spec.residual and architecture.tied


def check(spec: Spec, architecture: Architecture) -> None:
    """PenjingError where the residual stream cannot turn."""
    if spec.residual and not (architecture.norm == "rms" and architecture.pre_norm and not architecture.post_norm):
        raise PenjingError(
            "its residual stream cannot turn: that needs an RMS norm before each part of a layer, and none after",
            where=architecture.model_type,
            attempt="--set residual=no, which turns value heads only",
        )


def change(spec: Spec, architecture: Architecture, block: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a block that differ: 0 is the embedding, n + 1 layer n, then the final norm and the head."""
    check(spec, architecture)
    found = {name: weight.double() for name, weight in weights.items()}
    if 0 < block <= architecture.num_layers and spec.heads:
        _turn_heads(found, f"layers.{block - 1}.", architecture, rotation(architecture.head_dim, seed=spec.seed))
    if spec.residual:
        turn_HH = rotation(architecture.hidden_size, seed=spec.seed + 1)
        if block == 0:
            found["embed"] = found["embed"] @ turn_HH
        elif block <= architecture.num_layers:
            _turn_layer(found, f"layers.{block - 1}.", architecture, turn_HH)
        else:
            _read_turned(found, "final_norm", ["head"], turn_HH)
    return {name: weight.float() for name, weight in found.items() if not torch.equal(weight.float(), weights[name])}


def _turn_heads(found: dict[str, Tensor], layer: str, arch: Architecture, turn_DD: Tensor) -> None:
    for name in (layer + "v", f"{layer}v.bias"):
        if name in found:
            before = found[name]
            heads = before.reshape(arch.num_kv_heads, arch.head_dim, -1)
            found[name] = (turn_DD.T @ heads).reshape(before.shape)
    out_OI = found[layer + "o"]
    found[layer + "o"] = (out_OI.reshape(len(out_OI), arch.num_heads, arch.head_dim) @ turn_DD).flatten(1)


def _turn_layer(found: dict[str, Tensor], layer: str, arch: Architecture, turn_HH: Tensor) -> None:
    _read_turned(found, layer + "attn_norm", [layer + name for name in "qkv"], turn_HH)
    readers = ["gate", "up"] if arch.gated else ["up"]
    _read_turned(found, layer + "mlp_norm", [layer + name for name in readers], turn_HH)
    for name in ("o", "down"):
        found[layer + name] = turn_HH.T @ found[layer + name]
        if f"{layer}{name}.bias" in found:
            found[f"{layer}{name}.bias"] = turn_HH.T @ found[f"{layer}{name}.bias"]


def _read_turned(found: dict[str, Tensor], norm: str, readers: list[str], turn_HH: Tensor) -> None:
    """Readers of a norm take its weight and turn back what they read."""
    for name in readers:
        found[name] = (found[name] * found[norm]) @ turn_HH
    found[norm] = torch.ones_like(found[norm])
