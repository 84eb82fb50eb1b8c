"""How long `fit` will take and how much memory at most, told before it starts: the sum and the most of its steps.

What is chosen for each matrix is not known yet. Books of 4 bits everywhere stand in for it: neither the time nor the
memory of `options.METHOD` goes much with bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from penjing.checkpoint import Checkpoint
from penjing.data.text import Windows
from penjing.quant import tuning
from penjing.recipe.options import METHOD, TUNED_BY, group_sizes, options_of, sample_rows
from penjing.stages.calibrate import with_hessians
from penjing.stages.codes import plan
from penjing.stages.foresight import (
    Budget,
    Forecast,
    calibration_memory,
    foretold,
    hessian_bytes,
    memory,
    rss_bytes,
    tuning_memory,
)
from penjing.stages.quantize import choices
from penjing.stages.rehearsal import Rehearsal, calibration_seconds, forward_seconds, timed
from penjing.stages.tune import Training
from penjing.stages.weighing import Choice
from penjing.tensors.precision import fast_products
from penjing.tensors.statistics import Importance
from penjing.train import precision

_LOGITS = 5  # of a window, that comparing three models with their parent holds at a time
#: of the proof, in passes of a window through the float model: three models over the text, and comparing them. Measured
#: on SmolLM2: 3.95 of each window, and 37 for the next
_PROOF_PASSES = 4.0
#: the same for its speeds and memory: the parent in float16 beside the file, six rounds, at one thread and at all
_SPEED_PASSES = 40.0


def foresee(
    parent: Checkpoint,
    calibration: Windows,
    held_out: Windows,
    run: Path,
    *,
    calibrated: bool,
    minutes: float | None,
    budget: Budget,
    tell: Callable[[str], None] | None,
) -> Forecast:
    """What a fit will take. `run`: where it writes; `calibrated`: that is done already; `minutes`: of tuning.

    `tell` hears it. Raises PenjingError where `budget` does not allow it: memory first, which is counted, then time,
    which is measured.
    """
    groups = {name: group_sizes(cols)[0] for name, (_, cols) in parent.architecture.matrix_shapes().items()}
    sizes = [(name, {"group_size": size}) for name, size in groups.items()]
    chosen = choices(parent, METHOD, {"bits": 4, "levels": "book"}, sizes)
    needs = dict(_memory(parent, chosen, calibration, held_out, calibrated, minutes))
    for what, needed in needs.items():
        budget.check_memory(needed, where=f"{what}, {parent.name}", attempt=_remedy(what))
    with fast_products():
        seconds = _seconds(parent, chosen, calibration, held_out, run, calibrated) + 60 * (minutes or 0.0)
    fewer = "a shorter --minutes" if minutes else "penjing quantize --method rtn, which takes seconds"
    budget.check_time(seconds, where=f"fit, {parent.name}", attempt=fewer)
    forecast = Forecast(seconds, max(sum(needed.values()) for needed in needs.values()))
    if tell is not None:
        tell(f"fitting will take {foretold(forecast)}")
    return forecast


def _remedy(what: str) -> str:
    if what == "tuning":
        return "no --minutes, or penjing tune --method kl_tuning on what comes out"
    return "penjing quantize --by-block, which holds one layer, or a smaller parent"


def _memory(
    parent: Checkpoint,
    chosen: Mapping[str, Choice],
    calibration: Windows,
    held_out: Windows,
    calibrated: bool,
    minutes: float | None,
) -> Iterator[tuple[str, dict[str, int]]]:
    """Each step's bytes, by what holds them."""
    arch = parent.architecture
    shapes = arch.matrix_shapes()
    if not calibrated:
        yield "calibrating", calibration_memory(parent, calibration, hessians=with_hessians(parent))
    held = {"for what the loss minds": hessian_bytes(arch) * with_hessians(parent)}
    yield "quantizing", memory(parent, chosen, _importances(parent), calibration) | held
    if minutes:
        layouts = [choice.layout for choice in chosen.values()]
        training = Training()
        kind = precision.choose(training.precision, "cpu")
        yield "tuning", tuning_memory(arch, layouts, tuning(TUNED_BY), tokens=training.micro_tokens, precision=kind)
    weights = sum(4 * rows * cols for rows, cols in shapes.values())
    logits = _LOGITS * 4 * int(held_out.tokens_WT.shape[1]) * arch.vocab_size
    yield "proving", {"held already": rss_bytes(), "for two models in float32": 2 * weights, "for logits": logits}


def _seconds(
    parent: Checkpoint,
    chosen: Mapping[str, Choice],
    calibration: Windows,
    held_out: Windows,
    run: Path,
    calibrated: bool,
) -> float:
    total = 0.0 if calibrated else calibration_seconds(parent, calibration, hessians=with_hessians(parent))
    total += _pricing(parent)
    shards = plan(parent, {name: choice.layout for name, choice in chosen.items()})
    work = Rehearsal(parent, chosen, shards, range(len(shards)), _importances(parent), calibration, run)
    total += work.seconds()
    passes = _PROOF_PASSES * len(held_out.tokens_WT) + _SPEED_PASSES
    return total + passes * forward_seconds(parent, int(held_out.tokens_WT.shape[1]))


def _pricing(parent: Checkpoint) -> float:
    """Trying every option on a sample of each matrix: one of each shape is done."""
    importances, parts = _importances(parent), {part.name: part for part in parent.parts()}
    kinds: dict[tuple[int, int], list[str]] = {}
    for name, shape in parent.architecture.matrix_shapes().items():
        kinds.setdefault(shape, []).append(name)
    total = 0.0
    for (num_rows, num_cols), names in kinds.items():
        rows = sample_rows(num_rows, num_cols)
        weight_OI = torch.from_numpy(parent.read_part(parts[names[0]], slice(0, len(range(num_rows)[rows]))))
        importance = importances[names[0]]
        total += len(names) * timed(partial(_try_options, num_rows, weight_OI, importance, rows))
    return total


def _try_options(num_rows: int, weight_OI: torch.Tensor, importance: Importance, rows: slice) -> None:
    list(options_of(num_rows, weight_OI, importance, rows, largest=1.0))


def _importances(parent: Checkpoint) -> dict[str, Importance]:
    """Stand-ins for what calibrating gives, of its sizes; of a Hessian only that there is one."""
    some_II = torch.empty(0) if with_hessians(parent) else None
    return {
        name: Importance(torch.ones(1, rows), torch.ones(1, cols), some_II)
        for name, (rows, cols) in parent.architecture.matrix_shapes().items()
    }
