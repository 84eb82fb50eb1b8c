"""The optimizers by name, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from penjing.errors import PenjingError

OPTIMIZERS = ("adamw", "adafactor")
Schedule = Literal["constant", "linear", "cosine"]


def optimizer(name: str, parameters: Mapping[str, nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    """Matrices decay, vectors (norms, biases) do not.

    `adafactor` keeps one row and one column of second moments a matrix and no first moment (arXiv:1804.04235): next to
    no memory beside the weights.
    """
    kinds: dict[tuple[bool, type], list[nn.Parameter]] = {}
    for parameter in parameters.values():  # one group cannot hold tensors that are spread over processes, and others
        kinds.setdefault((parameter.ndim > 1, type(parameter.data)), []).append(parameter)
    groups = [
        {"params": found, "weight_decay": weight_decay if decays else 0.0} for (decays, _), found in kinds.items()
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    if name == "adafactor":
        return torch.optim.Adafactor(groups)
    raise PenjingError(f"no optimizer {name!r}", attempt=", ".join(OPTIMIZERS))


def learning_rate(highest: float, schedule: Schedule, warmup: float, done: float) -> float:
    """After a fraction `done` of training, of which a fraction `warmup` rises to `highest` in a line.

    `linear` and `cosine` then fall to a tenth of it.
    """
    if done < warmup:
        return highest * done / warmup
    left = 1.0 - (done - warmup) / max(1e-9, 1.0 - warmup)
    shape = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}
    if schedule not in shape:
        raise PenjingError(f"no schedule {schedule!r}", attempt=", ".join(shape))
    return highest * (1.0 if schedule == "constant" else 0.1 + 0.9 * max(0.0, shape[schedule]))
