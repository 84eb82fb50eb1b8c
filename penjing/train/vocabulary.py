"""Losses over the vocabulary without ever holding the logits.

SmolLM2's 49k logits for 2048 tokens are 400 MB, and a plain loss holds several such arrays. Here the loss of a chunk of
positions is computed with its gradient, both are reduced to the size of the hidden states (and of the head, where it is
trained), and the chunk's logits are forgotten (the idea of Liger, arXiv:2410.10989, and Cut Cross-Entropy,
arXiv:2411.09009). The backward pass then only multiplies by the gradient that comes in.

Shapes: N positions, C positions of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from penjing.train.forward import Head

#: bytes of a chunk's logits: below 32 MB glibc keeps freed memory, above it maps and clears fresh pages for each chunk
CHUNK_BYTES = 30_000_000

#: (logit_CV, which positions these are) -> (loss_C float32, d loss_C / d logit_CV). May overwrite logit_CV, which is
#: float32 or, if products are computed in bfloat16, that
ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


def chunked_loss(hidden_NH: Tensor, head: Head, weight_N: Tensor, chunk_loss: ChunkLoss) -> Tensor:
    """The weighted sum of a loss over all positions, differentiable in `hidden_NH` and in the head's weights."""
    apply: Any = _ChunkedLoss.apply
    found: Tensor = apply(hidden_NH, head.weight_VH, head.bias_V, weight_N, head, chunk_loss)
    return found


def logits(hidden_CH: Tensor, weight_VH: Tensor, head: Head) -> Tensor:
    """Final logits, in the precision of products unless something is done to them."""
    logit_CV = hidden_CH.to(weight_VH.dtype) @ weight_VH.T
    if head.bias_V is not None or head.scale != 1.0 or head.softcap is not None:
        logit_CV = logit_CV.float()
    if head.bias_V is not None:
        logit_CV += head.bias_V
    if head.scale != 1.0:
        logit_CV *= head.scale
    return logit_CV if head.softcap is None else logit_CV.div_(head.softcap).tanh_().mul_(head.softcap)


def chunks(num_positions: int, vocab_size: int, dtype: torch.dtype) -> list[slice]:
    size = max(1, CHUNK_BYTES // (vocab_size * dtype.itemsize))
    return [slice(start, min(start + size, num_positions)) for start in range(0, num_positions, size)]


def product_weight(head: Head) -> Tensor:
    """The head's weight in the precision that products are computed in now."""
    weight_VH = head.weight_VH.detach()
    kind = weight_VH.device.type
    return weight_VH.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else weight_VH


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        weight_N: Tensor,
        head: Head,
        chunk_loss: ChunkLoss,
    ) -> Tensor:
        product_VH = product_weight(head)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        total = hidden_NH.new_zeros((), dtype=torch.float32)
        grad_NH = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if needs_weight else None
        grad_V = torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias and bias_V is not None else None
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for chunk in chunks(len(hidden_NH), len(weight_VH), product_VH.dtype):
                hidden_CH, weight_C1 = hidden_NH[chunk].to(product_VH.dtype), weight_N[chunk, None]
                logit_CV = logits(hidden_CH, product_VH, head)
                slope_CV = None if head.softcap is None else 1 - (logit_CV / head.softcap).square_()
                loss_C, grad_CV = chunk_loss(logit_CV, chunk)
                total += loss_C @ weight_C1[:, 0]
                if slope_CV is not None:
                    grad_CV = grad_CV.mul_(slope_CV)
                if grad_V is not None:
                    grad_V += (head.scale * weight_C1[:, 0]) @ grad_CV.float()
                grad_CV = grad_CV.to(product_VH.dtype)
                # a position's weight commutes with the products, which are smaller than the logits
                if grad_NH is not None:
                    grad_NH[chunk] = (grad_CV @ product_VH) * (head.scale * weight_C1)
                if grad_VH is not None:
                    grad_VH += grad_CV.T @ (hidden_CH * (head.scale * weight_C1)).to(product_VH.dtype)
        ctx.save_for_backward(grad_NH, grad_VH, grad_V)
        return total

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = incoming
        grads = [None if grad is None else grad.mul_(scale.to(grad.dtype)) for grad in ctx.saved_tensors]
        return (*grads, None, None, None)
