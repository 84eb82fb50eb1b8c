"""A batch's documents one a row, filled up to the longest: what encoders and classifiers of transformers take.

Shapes: B rows of a batch, T tokens, D documents of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from penjing.train.batch import NO_LABEL, Batch


@dataclass(frozen=True)
class Padded:
    """`real_DT`: where there are tokens. `label_D`: `NO_LABEL` where there is none."""

    token_DT: Tensor  # noqa: N815
    real_DT: Tensor  # noqa: N815
    weight_DT: Tensor  # noqa: N815
    label_D: Tensor  # noqa: N815


def padded(batch: Batch, fill: int = 0) -> Padded:
    """Documents in order of rows, then of their places in the row."""
    real_BT = batch.document_BT >= 0
    token_N, weight_N = batch.token_BT[real_BT], batch.weight_BT[real_BT]
    start_D = (batch.position_BT[real_BT] == 0).nonzero()[:, 0]
    size_D = torch.cat([start_D, start_D.new_tensor([len(token_N)])]).diff()
    offset_T = torch.arange(int(size_D.max()), device=start_D.device)
    real_DT = offset_T < size_D[:, None]
    at_DT = (start_D[:, None] + offset_T).clamp(max=len(token_N) - 1)
    return Padded(
        token_N[at_DT].masked_fill(~real_DT, fill), real_DT, weight_N[at_DT].masked_fill(~real_DT, 0.0), _labels(batch)
    )


def _labels(batch: Batch) -> Tensor:
    count_B = batch.document_BT.amax(1) + 1
    if batch.label_BD is None:
        return count_B.new_full((int(count_B.sum()),), NO_LABEL)
    at_D = torch.arange(batch.label_BD.shape[1], device=count_B.device)
    return batch.label_BD[at_D < count_B[:, None]]
