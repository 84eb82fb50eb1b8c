"""What must be true of training: numbers stay finite and sane, what should change changes, and nothing else does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from penjing.errors import PenjingError

#: a gradient this many times the usual is no gradient of this loss any more; clipping deals with less
_EXPLODED = 1000.0
#: steps that say what is usual
_HISTORY = 32
_SMOOTHING = 0.9
#: nats a token that the smoothed loss may rise above its best before training is called off
_DIVERGED = 2.0


def check_step(step: int, loss: float, norm: float, curve: Sequence[Mapping[str, float]]) -> None:
    """Raises PenjingError, before anything is changed, for a step that would spoil the weights."""
    attempt = "a lower learning rate, more warmup, or precision f32"
    where = f"step {step}"
    for name, value in (("loss", loss), ("gradient", norm)):
        if not math.isfinite(value):
            raise PenjingError(f"the {name} is {value}", where=where, attempt=attempt)
    recent = [point["norm"] for point in curve[-_HISTORY:]]
    if len(recent) >= 8 and norm > _EXPLODED * max(statistics.median(recent), 1e-12):
        usual = statistics.median(recent)
        raise PenjingError(f"the gradient exploded: {norm:.3g}, usual were {usual:.3g}", where=where, attempt=attempt)
    smoothed, best = loss_trend([point["loss"] for point in curve] + [loss])
    if smoothed > best + _DIVERGED:
        raise PenjingError(
            f"training diverges: the loss was {best:.3f} and is {smoothed:.3f}", where=where, attempt=attempt
        )


def loss_trend(losses: Sequence[float]) -> tuple[float, float]:
    """The loss smoothed over about ten steps, and the lowest that was; the first steps are averaged."""
    weight, total, best = 0.0, 0.0, math.inf
    smoothed = math.inf
    for count, loss in enumerate(losses[-10 * _HISTORY :], start=1):
        total = _SMOOTHING * total + (1 - _SMOOTHING) * loss
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        smoothed = total / weight
        if count >= 8:
            best = min(best, smoothed)
    return smoothed, best if math.isfinite(best) else smoothed


def check_gradients(without: Sequence[str]) -> None:
    """`without`: trained parameters that no step gave a gradient."""
    if without:
        raise PenjingError(
            f"{len(without)} parameters were to be trained but the loss does not depend on them",
            where=", ".join(without[:3]) + (", …" if len(without) > 3 else ""),
            attempt="freeze them, or another objective",
        )


def check_changes(frozen: Mapping[str, tuple[str, str]], trained: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
    """Digests before and after. The names of trained parameters that stayed as they were; all of them, or a frozen one
    that did not, is an error."""
    moved = [name for name, (before, after) in frozen.items() if before != after]
    if moved:
        raise PenjingError(
            f"{len(moved)} frozen parameters changed in training",
            where=", ".join(moved[:3]),
            attempt="report this: it is a bug of the method",
        )
    still = tuple(name for name, (before, after) in trained.items() if before == after)
    if trained and len(still) == len(trained):
        raise PenjingError(
            "training ran but changed nothing",
            where=f"{len(trained)} trained parameters are what they were",
            attempt="a higher learning rate, more steps, or data with targets",
        )
    return still
