"""Attention that stays inside documents, for any transformers model: no mask is ever made.

transformers calls the function registered here with all documents of a batch in one row. Documents of similar size
are brought together as a small batch for torch's fused causal attention; what fills the shorter ones up stands *after*
their tokens, where causal attention never looks. So nothing is spent on pairs of tokens of different documents.

Shapes: N tokens of all documents, A attention heads, K key heads, E head size, G documents of a group, L their length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from penjing.errors import PenjingError
from penjing.train import causal as blocks

NAME = "penjing_documents"


@dataclass(frozen=True)
class Group:
    """Documents of similar size: where each of their tokens stands in the row, and which of these are tokens at all."""

    index_GL: Tensor  # noqa: N815
    token_M: Tensor  # noqa: N815  the places in the row, for the tokens alone
    real_M: Tensor | None  # noqa: N815  where those are in index_GL, flat; None: all are tokens


@dataclass(frozen=True)
class Documents:
    """How the row is made of documents. `whole`: one group, in order, so that it is only a view of the row."""

    groups: tuple[Group, ...]
    whole: bool


def documents(start_D: Tensor, size_D: Tensor) -> Documents:
    """Documents at `start_D` of `size_D` tokens, grouped so that at most a quarter of a group is filling."""
    sizes = size_D.tolist()
    if len(set(sizes)) == 1:
        index_GL = start_D[:, None] + torch.arange(sizes[0], device=start_D.device)
        return Documents((Group(index_GL, index_GL.flatten(), None),), whole=True)
    order = sorted(range(len(sizes)), key=lambda at: -sizes[at])
    groups = []
    while order:
        longest = sizes[order[0]]
        members = [at for at in order if sizes[at] >= 0.75 * longest or longest <= 16]
        order = order[len(members) :]
        groups.append(_group(start_D[members], size_D[members], longest))
    return Documents(tuple(groups), whole=False)


def _group(start_G: Tensor, size_G: Tensor, length: int) -> Group:
    offset_L = torch.arange(length, device=start_G.device)
    real_GL = offset_L < size_G[:, None]
    index_GL = torch.where(real_GL, start_G[:, None] + offset_L, start_G[:, None])
    real_M = real_GL.flatten().nonzero()[:, 0]
    return Group(index_GL, index_GL.flatten()[real_M], real_M)


@contextmanager
def attending(model: Any) -> Iterator[None]:
    """Let a transformers model use this attention for a while."""
    config = model.config
    before = config._attn_implementation
    if before == "eager" and not getattr(model, "_supports_attention_backend", False):
        raise PenjingError(
            "its attention cannot be exchanged, so documents cannot be packed",
            where=type(model).__name__,
            attempt="a family that `penjing list` names",
        )
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: Any,
    query_1ANE: Tensor,
    key_1KNE: Tensor,
    value_1KNE: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    packed: Documents | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """What transformers calls; `packed` is what `hidden_states` gave the model."""
    if packed is None:
        out, _ = sdpa_attention_forward(
            module, query_1ANE, key_1KNE, value_1KNE, attention_mask, dropout, scaling, **rest
        )
        return out, None
    if rest.get("softcap") is not None:
        raise PenjingError("attention with a soft cap is not supported", where=type(module).__name__)
    causal = bool(getattr(module, "is_causal", True))

    def one(group: Group, query_GALE: Tensor, key_GKLE: Tensor, value_GKLE: Tensor) -> Tensor:
        mask_LL = _window_mask(group.index_GL.shape[1], sliding_window, query_GALE.device) if causal else None
        filled_G1L = None if causal or group.real_M is None else _filled(group)
        if causal and mask_LL is None and not dropout and blocks.is_faster(query_GALE, value_GKLE):
            return blocks.attention(query_GALE, key_GKLE, value_GKLE, scaling)
        return scaled_dot_product_attention(
            query_GALE,
            key_GKLE,
            value_GKLE,
            attn_mask=filled_G1L if mask_LL is None else mask_LL,
            is_causal=causal and mask_LL is None,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=key_GKLE.shape[1] != query_GALE.shape[1],
        )

    if packed.whole:
        group = packed.groups[0]
        shape = group.index_GL.shape
        query, key, value = (
            x[0].view(-1, *shape, x.shape[-1]).transpose(0, 1) for x in (query_1ANE, key_1KNE, value_1KNE)
        )
        return one(group, query, key, value).transpose(1, 2).flatten(0, 1)[None], None
    query_NAE, key_NKE, value_NKE = (x[0].transpose(0, 1) for x in (query_1ANE, key_1KNE, value_1KNE))
    out_NAE = torch.zeros_like(query_NAE[..., : value_NKE.shape[-1]], memory_format=torch.contiguous_format)
    for group in packed.groups:
        taken = (x[group.index_GL].transpose(1, 2) for x in (query_NAE, key_NKE, value_NKE))
        found_MAE = one(group, *taken).transpose(1, 2).flatten(0, 1)
        found_MAE = found_MAE if group.real_M is None else found_MAE[group.real_M]
        out_NAE = out_NAE.index_copy(0, group.token_M, found_MAE)
    return out_NAE[None], None


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """A causal mask where documents are longer than the window, else None."""
    if window is None or length <= window:
        return None
    at_L = torch.arange(length, device=device)
    back_LL = at_L[:, None] - at_L[None, :]
    return (back_LL >= 0) & (back_LL < window)


def _filled(group: Group) -> Tensor:
    """What both-way attention may look at: the tokens of the document."""
    real_GL = torch.zeros(group.index_GL.numel(), dtype=torch.bool, device=group.index_GL.device)
    assert group.real_M is not None
    return real_GL.index_fill(0, group.real_M, True).view_as(group.index_GL)[:, None, None, :]


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
