"""AWQ: inputs that the loss minds are scaled up before rounding, and whatever makes them is scaled down (2306.00978).

An input's scale s multiplies its column of the weight and divides what comes in, so nothing changes but the grid that
the column is rounded to. Here 1/s always goes to a place where it costs nothing: the norm before q, k, v and gate, up;
the rows of v before o; those of up before down. s = a^x / w^y with a the square root of the input's importance and w
its largest weight; x and y are those for which rounding (`tensors.scales`) raises the expected loss least. x = y = 0
is among them. A technique that quantizes comes afterwards, any of them.

Shapes: O outputs (a sample of rows), I inputs, V channels of all value heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from penjing.format.architecture import Architecture
from penjing.tensors.scales import search
from penjing.tensors.statistics import Importance

_POWERS = tuple(n / 8 for n in range(9))
_SAMPLE = 1 << 17  # weights of a matrix that are tried
_FURTHEST = 64.0  # a scale beyond this would cost float16 its smallest values


@dataclass(frozen=True, kw_only=True)
class Spec:
    """bits, group_size, symmetric: of the grid that comes afterwards."""

    bits: int = 4
    group_size: int = 32
    symmetric: bool = True


def change(
    spec: Spec,
    architecture: Architecture,
    block: int,
    weights: Mapping[str, Tensor],
    *,
    importances: Mapping[str, Importance],
) -> dict[str, Tensor]:
    """The weights of a block that differ, so that it computes what it did: 0 is the embedding, n + 1 layer n."""
    if not 0 < block <= architecture.num_layers:
        return {}
    layer = f"layers.{block - 1}."
    changed: dict[str, Tensor] = {}
    known = dict(importances)
    for producer, consumers in _pairs(architecture):
        names = [layer + name for name in consumers]
        now = {name: changed.get(name, weights[name]) for name in names}
        shared = architecture.num_heads // architecture.num_kv_heads if producer == "v" else 1
        scale_I = _best_scale(spec, now, {name: known[name] for name in names}, architecture, shared)
        changed |= {name: weight_OI * scale_I for name, weight_OI in now.items()}
        made_I = _per_value(scale_I, architecture, shared)
        for name in (layer + producer, f"{layer}{producer}.bias"):
            if name in weights:
                value = changed.get(name, weights[name])
                changed[name] = value / (made_I.unsqueeze(1) if value.ndim == 2 else made_I)
        if layer + producer in known:  # its errors count for more where its rows became smaller
            before = known[layer + producer]
            known[layer + producer] = replace(before, output_KO=before.output_KO * made_I.square())
    return changed


def _pairs(architecture: Architecture) -> Iterator[tuple[str, Sequence[str]]]:
    """What makes an input, channel by channel, and what reads it."""
    yield "v", ["o"]
    if architecture.gated:
        yield "up", ["down"]
    if architecture.pre_norm:
        yield "attn_norm", ["q", "k", "v"]
        yield "mlp_norm", ["gate", "up"] if architecture.gated else ["up"]


def _best_scale(
    spec: Spec, weights: Mapping[str, Tensor], importances: Mapping[str, Importance], arch: Architecture, shared: int
) -> Tensor:
    """The scale for which the expected loss of all readers together is least, [I]."""
    felt_I = torch.stack([importance.mean_input_I() for importance in importances.values()]).sum(0)
    largest_I = torch.stack([weight_OI.abs().amax(0) for weight_OI in weights.values()]).amax(0)
    felt_I, largest_I = (_shared(value_I, arch, shared) for value_I in (felt_I, largest_I))
    felt_I = (felt_I + 1e-4 * felt_I.mean().clamp_min(1e-30)).sqrt()
    best_I, least = torch.ones_like(felt_I), torch.inf
    for scale_I in _candidates(felt_I, largest_I.clamp_min(1e-12)):
        loss = sum(_loss(spec, weights[name], importances[name], scale_I) for name in weights)
        if loss < least:
            best_I, least = scale_I, loss
    return best_I


def _candidates(felt_I: Tensor, largest_I: Tensor) -> Iterator[Tensor]:
    for power in _POWERS:
        for down in {0.0, power, 1 - power} if power else {0.0, 0.5, 1.0}:
            scale_I = felt_I**power / largest_I**down
            scale_I = scale_I / scale_I.log().mean().exp()
            yield scale_I.clamp(1 / _FURTHEST, _FURTHEST)


def _loss(spec: Spec, weight_OI: Tensor, importance: Importance, scale_I: Tensor) -> float:
    rows = slice(0, None, max(1, weight_OI.numel() // _SAMPLE))
    sample_OI = weight_OI[rows]
    quantized = search(
        sample_OI * scale_I,
        importance.mean_input_I() / scale_I.square(),
        bits=spec.bits,
        group_size=spec.group_size,
        symmetric=spec.symmetric,
    )
    return importance.loss(quantized.dequantize() / scale_I - sample_OI, rows)


def _shared(value_I: Tensor, arch: Architecture, shared: int) -> Tensor:
    """The same for all query heads that read one value head: their mean."""
    if shared == 1:
        return value_I
    heads = value_I.reshape(arch.num_kv_heads, shared, arch.head_dim)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)


def _per_value(scale_I: Tensor, arch: Architecture, shared: int) -> Tensor:
    """[V] of the scales of the query heads that read it."""
    if shared == 1:
        return scale_I
    return scale_I.reshape(arch.num_kv_heads, shared, arch.head_dim)[:, 0].reshape(-1)
