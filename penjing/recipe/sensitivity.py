"""Which parts of a model hurt when they are rounded: measured KL to the parent, one part after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penjing.checkpoint import Checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.format.pack import Layout
from penjing.measure.quality import Quality
from penjing.recipe.pictures import MUTED, draw
from penjing.recipe.trials import Rounding, Trials
from penjing.stages import Progress
from penjing.stages.blocks import block_of
from penjing.tensors.statistics import Importance

#: the whole model, so that one sees how far the parts' KLs add up
EVERYTHING: Final = "*"
_AT_A_TIME = 4  # the parent predicts once for so many; each holds its weights and 64 MB of logits


@dataclass(frozen=True, kw_only=True)
class Part:
    """`pattern`: the part as `quantize --set PATTERN:bits=…` names it. Sizes are those of a packed file.

    `kl`: in nats a token, of the model with this part alone rounded."""

    pattern: str
    bits: int
    size_bytes: int
    float_bytes: int
    kl: float
    top1_agreement: float


def sensitivity(
    parent: Checkpoint,
    held_out: Windows,
    *,
    bits: Sequence[int],
    by: str = "block",
    method: str = "rtn",
    settings: Mapping[str, Any] | None = None,
    importances: Mapping[str, Importance] | None = None,
    progress: Progress | None = None,
) -> list[Part]:
    """KL on held-out windows for each part and number of bits, in the order of the model, then of the whole.

    Takes the model in float32, and a forward pass of all windows from each part onward. `importances`: of
    `stages.calibrate`, for techniques that weigh errors. Raises PenjingError.
    """
    shapes = parent.architecture.matrix_shapes()
    units = _units(list(shapes), parent.architecture.num_layers, by)
    roundings = {count: Rounding(method, {**(settings or {}), "bits": count}) for count in dict.fromkeys(bits)}
    for name, (rows, cols) in shapes.items():  # what cannot be is said before the work
        for rounding in roundings.values():
            rounding.size_bytes(name, rows, cols)
    trials = Trials(parent, held_out)
    wanted = [(pattern, names, count) for pattern, names in units for count in roundings]
    found: list[Part] = []
    while len(found) < len(wanted):
        batch = wanted[len(found) : len(found) + _AT_A_TIME]
        if progress is not None:
            progress(batch[0][0], len(found), len(wanted))
        changes = {
            f"{pattern} {count}": {
                name: roundings[count](name, trials.weight(name), (importances or {}).get(name)) for name in names
            }
            for pattern, names, count in batch
        }
        judged = trials.judge(changes)
        found += [
            _part(pattern, names, shapes, roundings[count], count, judged[f"{pattern} {count}"])
            for pattern, names, count in batch
        ]
    if progress is not None:
        progress("sensitivity", len(found), len(wanted))
    return found


def _part(
    pattern: str,
    names: Sequence[str],
    shapes: Mapping[str, tuple[int, int]],
    rounding: Rounding,
    bits: int,
    quality: Quality,
) -> Part:
    assert quality.kl_to_parent is not None  # the parent was there
    assert quality.top1_agreement is not None
    return Part(
        pattern=pattern,
        bits=bits,
        size_bytes=sum(rounding.size_bytes(name, *shapes[name]) for name in names),
        float_bytes=sum(Layout(kind="f16", rows=shapes[name][0], cols=shapes[name][1]).nbytes for name in names),
        kl=quality.kl_to_parent,
        top1_agreement=quality.top1_agreement,
    )


def _units(names: Sequence[str], num_layers: int, by: str) -> list[tuple[str, list[str]]]:
    """Patterns and the matrices they stand for, by their first block, then everything."""
    patterns: dict[str, Callable[[str], str]] = {
        "block": lambda name: ".".join([*name.split(".")[:2], "*"]),
        "kind": lambda name: f"layers.*.{name.rsplit('.', 1)[1]}",
        "matrix": lambda name: name,
    }
    if by not in patterns:
        raise PenjingError(f"no such parts: {by!r}", where="--by", attempt=", ".join(patterns))
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(patterns[by](name) if name.startswith("layers.") else name, []).append(name)
    ordered = sorted(units.items(), key=lambda unit: min(block_of(name, num_layers) for name in unit[1]))
    return [*ordered, (EVERYTHING, list(names))]


def draw_sensitivity(parts: Sequence[Part], path: Path) -> None:
    """Write a picture of the KL of each part, a line for each number of bits. Raises PenjingError."""
    single = [part for part in parts if part.pattern != EVERYTHING]
    patterns = list(dict.fromkeys(part.pattern for part in single))

    def paint(axes: Any) -> None:
        for bits in dict.fromkeys(part.bits for part in single):
            kls = {part.pattern: part.kl for part in single if part.bits == bits}
            axes.plot(
                [kls[pattern] for pattern in patterns], range(len(patterns)), "o-", label=f"{bits} bits", linewidth=0.8
            )
        axes.set_yticks(range(len(patterns)), patterns)
        axes.invert_yaxis()
        axes.set_xscale("log" if all(part.kl > 0 for part in single) else "linear")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("KL to the parent with this part alone rounded, nats a token")
        axes.grid(axis="x", color=MUTED, linewidth=0.3)
        axes.legend(frameon=False)

    draw(path, paint, size=(6.4, 1.2 + 0.16 * len(patterns)))
