"""The hidden states of a batch's tokens, and the head that makes logits of them.

Shapes: B rows, T tokens of a row, N tokens of all documents, H hidden size, V vocabulary, D documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import PenjingError
from penjing.train.attention import attending, documents
from penjing.train.batch import Batch


@dataclass(frozen=True)
class Flat:
    """A batch without what its rows are filled up with: all documents one after the other."""

    token_N: Tensor  # noqa: N815
    position_N: Tensor  # noqa: N815
    weight_N: Tensor  # noqa: N815
    start_D: Tensor  # noqa: N815
    size_D: Tensor  # noqa: N815


@dataclass(frozen=True)
class Head:
    """logit_V = cap(scale * (weight_VH @ hidden_H + bias_V)); cap(x) is softcap * tanh(x / softcap), if any."""

    weight_VH: Tensor  # noqa: N815
    bias_V: Tensor | None  # noqa: N815
    scale: float
    softcap: float | None


def unwrapped(model: Any) -> Any:
    """The transformers model inside of peft's wrapper, its layers still with their adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def flatten(batch: Batch) -> Flat:
    real_BT = batch.document_BT >= 0
    position_N = batch.position_BT[real_BT]
    start_D = (position_N == 0).nonzero()[:, 0]
    end = torch.full((1,), len(position_N), device=start_D.device, dtype=start_D.dtype)
    return Flat(
        batch.token_BT[real_BT], position_N, batch.weight_BT[real_BT], start_D, torch.cat([start_D, end]).diff()
    )


def hidden_states(model: Any, flat: Flat) -> Tensor:
    """hidden_NH of the model's body (after the last norm): every document attends to itself alone, and to the trained
    prompt before it, if the model has one."""
    if _has_prompt(model):
        return _after_prompt(model, flat)
    body = unwrapped(model).base_model
    packed = documents(flat.start_D, flat.size_D)
    with attending(body):
        out = body(input_ids=flat.token_N[None], position_ids=flat.position_N[None], use_cache=False, packed=packed)
    hidden_NH: Tensor = out.last_hidden_state[0]
    return hidden_NH


def _has_prompt(model: Any) -> bool:
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def _after_prompt(model: Any, flat: Flat) -> Tensor:
    """The same through peft's own forward, which puts its prompt before every row: a document a row."""
    sizes = flat.size_D.tolist()
    token_DT = nn.utils.rnn.pad_sequence([*torch.split(flat.token_N, sizes)], batch_first=True)
    real_DT = torch.arange(token_DT.shape[1], device=token_DT.device) < flat.size_D[:, None]
    none = torch.zeros(0, dtype=torch.long, device=token_DT.device)  # of one a row torch would copy the head for each
    out = model(input_ids=token_DT, attention_mask=real_DT.long(), output_hidden_states=True, logits_to_keep=none)
    hidden_DTH: Tensor = out.hidden_states[-1][:, -token_DT.shape[1] :]
    return hidden_DTH[real_DT]


def head(model: Any) -> Head:
    """The output embedding of a decoder, with what its family does to logits."""
    inner = unwrapped(model)
    found = inner.get_output_embeddings()
    if not isinstance(found, nn.Linear):
        raise PenjingError(
            f"its head is a {type(found).__name__}, which the loss in chunks cannot use",
            where=type(inner).__name__,
            attempt="methods that leave the head as it is",
        )
    config = inner.config
    scale = 1.0 / float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
    return Head(found.weight, found.bias, scale, getattr(config, "final_logit_softcapping", None))


def targets(flat: Flat) -> tuple[Tensor, Tensor, Tensor]:
    """(at, token, weight) of everything to predict: `token` from the hidden state at `at`."""
    wanted = flat.weight_N.nonzero()[:, 0]
    return wanted - 1, flat.token_N[wanted], flat.weight_N[wanted]
