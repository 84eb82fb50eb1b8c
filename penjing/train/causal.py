"""Causal attention in bfloat16, block by block of queries, where torch's fused one is slow.

Without tiles for bfloat16 (AMX) torch's fused attention is slower than the matrix products it consists of: 9 heads, 3
of keys, of 512 positions, forward and backward, 20.2 ms on one Zen 5 core where these take 11.5. A block sees the keys
up to its own end only, and the weights are made again in the backward pass (FlashAttention, arXiv:2205.14135), so
nothing of their size stays.

Shapes: G documents, A attention heads, K key heads, R = A / K, L positions, E head size, N queries of a block, P = G K,
S keys that a block sees.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

#: 64 of 32 to 256 is the fastest at 128 to 1024 positions
_BLOCK = 64


def is_faster(query: Tensor, value: Tensor) -> bool:
    """Whether `attention` should be used for these."""
    if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or query.shape[-1] != value.shape[-1]:
        return False
    return torch.get_autocast_dtype("cpu") == torch.bfloat16 and not torch.cpu._is_amx_tile_supported()


def attention(query_GALE: Tensor, key_GKLE: Tensor, value_GKLE: Tensor, scale: float | None) -> Tensor:
    """out_GALE, as scaled_dot_product_attention(is_causal=True, enable_gqa=True) under autocast."""
    documents, heads, length, size = query_GALE.shape
    key_heads = key_GKLE.shape[1]
    query_PRLE = query_GALE.bfloat16().reshape(documents * key_heads, heads // key_heads, length, size)
    key_PLE, value_PLE = (x.bfloat16().reshape(-1, length, size) for x in (key_GKLE, value_GKLE))
    scale = 1 / math.sqrt(size) if scale is None else scale
    out_PRLE: Tensor = _Attention.apply(query_PRLE, key_PLE, value_PLE, scale)  # type: ignore[no-untyped-call]
    return out_PRLE.view(documents, heads, length, size)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_PRLE: Tensor, key_PLE: Tensor, value_PLE: Tensor, scale: float) -> Tensor:
        out_PRLE = torch.empty_like(query_PRLE, memory_format=torch.contiguous_format)
        norm_PRL = query_PRLE.new_empty(query_PRLE.shape[:-1], dtype=torch.float32)  # log of the sum of weights
        for begin, end in _blocks(query_PRLE.shape[2]):
            score_PRNS = _scores(query_PRLE[:, :, begin:end], key_PLE[:, :end], scale)
            norm_PRN = score_PRNS.logsumexp(-1)
            weight_PRNS = score_PRNS.sub_(norm_PRN[..., None]).exp_().bfloat16()
            out_PRLE[:, :, begin:end] = _times(weight_PRNS, value_PLE[:, :end])
            norm_PRL[:, :, begin:end] = norm_PRN
        ctx.save_for_backward(query_PRLE, key_PLE, value_PLE, out_PRLE, norm_PRL)
        ctx.scale = scale
        return out_PRLE

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_PRLE: Tensor) -> tuple[Tensor | None, ...]:
        query_PRLE, key_PLE, value_PLE, out_PRLE, norm_PRL = ctx.saved_tensors
        grad_PRLE = grad_PRLE.bfloat16()
        to_query_PRLE = torch.empty_like(query_PRLE)
        to_key_PLE = torch.zeros(key_PLE.shape, dtype=torch.float32)
        to_value_PLE = torch.zeros_like(to_key_PLE)
        mean_PRL1 = (grad_PRLE.float() * out_PRLE.float()).sum(-1, keepdim=True)
        for begin, end in _blocks(query_PRLE.shape[2]):
            query_PRNE, grad_PRNE = query_PRLE[:, :, begin:end], grad_PRLE[:, :, begin:end]
            score_PRNS = _scores(query_PRNE, key_PLE[:, :end], ctx.scale)
            weight_PRNS = score_PRNS.sub_(norm_PRL[:, :, begin:end, None]).exp_()
            to_value_PLE[:, :end] += _gathered(weight_PRNS.bfloat16(), grad_PRNE)
            to_weight_PRNS = _times(grad_PRNE, value_PLE[:, :end].mT).float()
            to_score_PRNS = to_weight_PRNS.sub_(mean_PRL1[:, :, begin:end]).mul_(weight_PRNS).mul_(ctx.scale).bfloat16()
            to_query_PRLE[:, :, begin:end] = _times(to_score_PRNS, key_PLE[:, :end])
            to_key_PLE[:, :end] += _gathered(to_score_PRNS, query_PRNE)
        return to_query_PRLE, to_key_PLE.bfloat16(), to_value_PLE.bfloat16(), None


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + _BLOCK, length)) for begin in range(0, length, _BLOCK)]


def _scores(query_PRNE: Tensor, key_PSE: Tensor, scale: float) -> Tensor:
    """Float32, -infinity where a key comes after the query; the last of them stands beside the last query."""
    score_PRNS = _times(query_PRNE, key_PSE.mT).float().mul_(scale)
    num = query_PRNE.shape[2]
    later_NN = torch.ones(num, num, dtype=torch.bool).triu_(1)
    score_PRNS[..., -num:].masked_fill_(later_NN, -math.inf)
    return score_PRNS


def _times(x_PRNI: Tensor, y_PIO: Tensor) -> Tensor:
    """The heads that share keys are one product."""
    return torch.bmm(x_PRNI.flatten(1, 2), y_PIO).view(*x_PRNI.shape[:3], -1)


def _gathered(x_PRNS: Tensor, y_PRNE: Tensor) -> Tensor:
    """Sums over heads and queries [P, S, E]."""
    return torch.bmm(x_PRNS.flatten(1, 2).mT, y_PRNE.flatten(1, 2))
