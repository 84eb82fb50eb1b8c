"""How long quantizing will take, and how much memory at most, told before it starts.

Memory is the sum of what is alive at once: what the process holds already, hidden states of all windows, and the most
of what a block needs in turn: its weights in float32 and its Hessians while windows go through it, what learning keeps,
or Hessians and the rows under way while it is rounded. Time is measured (`rehearsal`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penjing.checkpoint import Checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.format.architecture import Architecture
from penjing.format.pack import Layout
from penjing.quant import Tuning, learns, technique
from penjing.stages.blocks import block_of
from penjing.stages.codes import row_chunks
from penjing.stages.weighing import Choice, asking, learned_together
from penjing.tensors.statistics import Importance

#: of each weight of a chunk of rows: as read, in groups, what is tried, its code, packed, as it is written. Measured:
#: 22 to 44 for seven techniques
_ROUNDING_BYTES = 30
#: of each weight that is learned: itself, its groups, offset, gradient, the weight it makes, what autograd keeps
_LEARNING_BYTES = 40
#: what products and threads take once they have worked
_LATER_BYTES = 20_000_000
#: of importing transformers
_TRANSFORMERS_BYTES = 100_000_000
#: of a chunk of positions, its gradient and its softmax: `train.vocabulary` keeps to it
_LOGITS_BYTES = 100_000_000


@dataclass(frozen=True)
class Forecast:
    """Of one stage, or of what is left of it."""

    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Budget:
    """What the work may take; None: as much as it wants."""

    max_bytes: int | None = None
    max_seconds: float | None = None

    def __bool__(self) -> bool:
        """Whether there is a limit."""
        return self.max_bytes is not None or self.max_seconds is not None

    def after(self, seconds: float) -> Budget:
        """What is left when some of the time is gone."""
        left = None if self.max_seconds is None else max(0.0, self.max_seconds - seconds)
        return Budget(self.max_bytes, left)

    def check_memory(self, needed: Mapping[str, int], *, where: str, attempt: str) -> None:
        """Raise PenjingError where what is needed, by what for, is more."""
        total = sum(needed.values())
        if self.max_bytes is not None and total > self.max_bytes:
            listed = ", ".join(f"{size / 1e6:,.0f} MB {what}" for what, size in needed.items() if size)
            raise PenjingError(
                f"it would take {total / 1e6:,.0f} MB of memory, {self.max_bytes / 1e6:,.0f} MB are allowed",
                where=f"{where}: {listed}",
                attempt=attempt,
            )

    def check_time(self, seconds: float, *, where: str, attempt: str) -> None:
        """Raise PenjingError where it would take longer."""
        if self.max_seconds is not None and seconds > self.max_seconds:
            raise PenjingError(
                f"it would take about {seconds / 60:.2g} minutes, {self.max_seconds / 60:.2g} are allowed",
                where=where,
                attempt=attempt,
            )


UNLIMITED: Final = Budget()


def memory(
    parent: Checkpoint,
    chosen: Mapping[str, Choice],
    importances: Mapping[str, Importance],
    calibration: Windows | None,
) -> dict[str, int]:
    """Bytes at the worst moment, by what holds them."""
    num_layers = parent.architecture.num_layers
    asked = asking(chosen, importances, num_layers) if calibration is not None else set()
    learned = learned_together(chosen, num_layers) if calibration is not None else {}
    by_block: dict[int, dict[str, Choice]] = {}
    for name, choice in chosen.items():
        by_block.setdefault(block_of(name, num_layers), {})[name] = choice
    states = 0
    moments: list[dict[str, int]] = [{}]
    if (asked or learned) and calibration is not None:
        states = 4 * calibration.tokens_WT.size * parent.architecture.hidden_size * (2 if learned else 1)
        moments.append(_walking(parent, calibration, hessians=bool(asked - {num_layers + 1})))
    for block, choices in by_block.items():
        moments.append(_rounding(choices, block in asked))
        if block in learned and calibration is not None:
            names = [name for _, matrices in learned[block] for name in matrices]
            moments.append(_learning(parent, choices, names, calibration))
    worst = max(moments, key=lambda moment: sum(moment.values()))
    held = {"held already": rss_bytes() + _LATER_BYTES, "for hidden states": states}
    return held | worst


def _walking(parent: Checkpoint, calibration: Windows, *, hessians: bool) -> dict[str, int]:
    """The largest layer in float32, one tensor of it as it is read, its Hessians, and one window in it."""
    arch = parent.architecture
    layer = {name: shape for name, shape in arch.matrix_shapes().items() if name.startswith("layers.0.")}
    weights = sum(4 * rows * cols for rows, cols in layer.values())
    read = max(2 * rows * cols for rows, cols in layer.values())
    found = {"for a layer's weights": weights + read, "for one window in it": _window(parent, calibration)}
    return found | {"for its Hessians": sum(4 * cols * cols for cols in _inputs(layer).values()) if hessians else 0}


def _window(parent: Checkpoint, calibration: Windows) -> int:
    """Activations of a layer: what is read and made in its MLP, or in its attention."""
    arch, length = parent.architecture, int(calibration.tokens_WT.shape[1])
    mlp = 3 * arch.intermediate_size + 3 * arch.hidden_size
    attention = 4 * arch.q_size + 6 * arch.kv_size + 3 * arch.hidden_size
    return 4 * length * max(mlp, attention)


def _rounding(choices: Mapping[str, Choice], walked: bool) -> dict[str, int]:
    """A block's Hessians, what is prepared of them, and the rows under way."""
    shapes = {name: (choice.layout.rows, choice.layout.cols) for name, choice in choices.items()}
    inputs = _inputs(shapes) if walked else {name: cols for name, (_, cols) in shapes.items()}
    hessians = sum(4 * cols * cols for cols in inputs.values()) if walked else 0
    prepared, work = 0, 0
    for name, choice in choices.items():
        if name in inputs:
            prepared += getattr(choice.method, "PREPARED_BYTES", 0) * choice.layout.cols**2
        rows = next(row_chunks(choice.layout)).stop
        usual = _ROUNDING_BYTES * rows * choice.layout.cols
        own = getattr(choice.method, "work_bytes", None)
        work = max(work, usual if own is None else own(choice.spec, rows, choice.layout.cols))
    return {"for its Hessians": hessians + prepared, "for rounding": work}


def _inputs(shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Matrices whose inputs none before them has, and how many those are: q, k and v share theirs, gate and up too."""
    first = {"k": "q", "v": "q", "up": "gate"}
    found = {}
    for name, (_, cols) in shapes.items():
        before, _, last = name.rpartition(".")
        if f"{before}.{first.get(last)}" not in shapes:
            found[name] = cols
    return found


def _learning(
    parent: Checkpoint, choices: Mapping[str, Choice], names: list[str], calibration: Windows
) -> dict[str, int]:
    """A layer's weights, what each one learned takes, targets of all windows, and one window with its gradients."""
    learned = sum(choices[name].layout.rows * choices[name].layout.cols for name in names)
    targets = 4 * calibration.tokens_WT.size * parent.architecture.hidden_size
    return {
        "for a layer's weights": sum(4 * choice.layout.rows * choice.layout.cols for choice in choices.values()),
        "for learning": _LEARNING_BYTES * learned + targets + 3 * _window(parent, calibration),
    }


def calibration_memory(parent: Checkpoint, calibration: Windows, *, hessians: bool) -> dict[str, int]:
    """Bytes that the Fisher information of the whole model takes: `tensors.statistics`."""
    arch = parent.architecture
    length = int(calibration.tokens_WT.shape[1])
    shapes = arch.matrix_shapes()
    return {
        "held already": rss_bytes() + _TRANSFORMERS_BYTES + _LATER_BYTES,
        "for its weights": sum(4 * rows * cols for rows, cols in shapes.values()),
        "for Hessians": hessian_bytes(arch) * hessians,
        "for a window's activations": 4 * length * _saved(arch) * arch.num_layers,
        "for its logits and the head's gradient": 4 * (3 * length + arch.hidden_size) * arch.vocab_size,
    }


def hessian_bytes(arch: Architecture) -> int:
    """Of the Fisher's Hessians of all matrices."""
    return sum(4 * cols * cols for _, cols in arch.matrix_shapes().values())


def _saved(arch: Architecture) -> int:
    """Numbers of a token that a layer keeps for the way back."""
    return 6 * arch.hidden_size + 2 * arch.q_size + 2 * arch.kv_size + 4 * arch.intermediate_size


def tuning_memory(
    arch: Architecture, layouts: Collection[Layout], method: Tuning, *, tokens: int, precision: str
) -> dict[str, int]:
    """Bytes that tuning takes: the student with what is trained of it, its teacher, `tokens` that pass at a time."""
    product = 2 if precision == "bf16" else 4
    coded = sum(layout.rows * layout.cols for layout in layouts)
    every = sum(rows * cols for rows, cols in arch.matrix_shapes().values())
    largest = max(layout.rows * layout.cols for layout in layouts)
    return {
        "held already": rss_bytes() + _TRANSFORMERS_BYTES + _LATER_BYTES,
        "for what is trained, with gradients and Adam's moments": 16 * sum(map(method.num_trained, layouts)),
        "for codes, the weights that they make, and their gradients": (1 + 2 * product) * coded + 12 * largest,
        "for the teacher": product * every + 4 * arch.vocab_size * arch.hidden_size,
        "for activations": product * tokens * _saved(arch) * arch.num_layers,
        "for logits": min(_LOGITS_BYTES, 12 * tokens * arch.vocab_size),
    }


def rss_bytes() -> int:
    """What this process holds now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def remedies(chosen: Mapping[str, Choice], calibration: Windows | None) -> str:
    """What to change where a budget does not do."""
    found = []
    if calibration is not None and len(calibration.tokens_WT) > 1:
        found.append(f"--windows {max(1, math.floor(len(calibration.tokens_WT) / 2))}")
    if any(learns(choice.method) for choice in chosen.values()):
        found.append("--set steps=50, or --method gptq --by-block")
    if any(choice.method is not technique("rtn") for choice in chosen.values()):
        found.append("--method rtn")
    return ", or ".join(found) or "a larger budget: nothing takes less than this"


def foretold(forecast: Forecast) -> str:
    """For a person, before the work."""
    return f"about {human_seconds(forecast.seconds)}, {forecast.peak_rss_bytes / 1e6:,.0f} MB of memory at most"


def human_seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 99 else f"{seconds / 60:.2g} minutes"
