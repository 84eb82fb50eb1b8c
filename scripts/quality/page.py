"""What the bench of quality shows: a table, the record that it is drawn from, and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penjing.recipe.pictures import ACCENT, MUTED, draw, label_points

#: colours by the first word of a row's name; others are muted
_COLOURS = {"penjing": ACCENT, "llama.cpp": "#0969da", "llm-compressor": "#9a6700"}
#: where half of the perplexities are nearer to the parent's than this they tell nothing
_LEAST_TOLD = 0.1
#: nats, where a logarithm needs one
_LEAST_KL = 1e-4
_MOST_SHOWN = 30.0  # times the parent's perplexity: beyond, a model says nothing


@dataclass(frozen=True)
class Row:
    """One model: what it is, the bytes of its file, and what `measure` says of it."""

    name: str
    size_bytes: int
    quality: dict[str, Any]
    predicted_kl: float | None = None


def table(rows: Sequence[Row]) -> str:
    """Markdown. The first row is the parent's."""
    base = rows[0].quality["perplexity"]
    lines = [
        "| model | MB | perplexity | over parent | KL, nats | same first choice | predicted KL |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(rows[1:], key=lambda row: -row.size_bytes):
        found = row.quality
        predicted = "" if row.predicted_kl is None else f"{row.predicted_kl:.3f}"
        lines.append(
            f"| {row.name} | {row.size_bytes / 1e6:.1f} | {found['perplexity']:.2f} "
            f"| {found['perplexity'] / base - 1:+.1%} | {found['kl_to_parent']:.3f} "
            f"| {found['top1_agreement']:.1%} | {predicted} |"
        )
    return "\n".join(lines) + "\n"


def page(rows: Sequence[Row], record: Mapping[str, Any]) -> str:
    """Markdown: what was compared, how, and the table."""
    parent = rows[0]
    machine = record["device"]
    return (
        f"# Quality per byte\n\n{record['about']} ({parent.size_bytes / 1e6:.0f} MB, perplexity "
        f"{parent.quality['perplexity']:.2f}). {record['texts']} Bytes are of whole files; all perplexities are of the "
        f"weights as stored, in the same code.\n\n`{record['command']}`, {machine['cpu']}, {machine['cores']} cores, "
        f"Python {record['versions']['python']}, torch {record['versions']['torch']}.\n\n{table(rows)}"
    )


def picture(rows: Sequence[Row], path: Path) -> None:
    """Bytes against perplexity over the parent's, both as they are read: the lower left is better.

    Where rounding hardly moves perplexity, as of a parent whose own is high, it tells nothing, and KL takes its place.
    """
    base = rows[0].quality["perplexity"]
    shown = [row for row in rows[1:] if row.quality["perplexity"] < _MOST_SHOWN * base]
    told = [abs(row.quality["perplexity"] / base - 1) for row in shown]
    by_kl = not told or statistics.median(told) < _LEAST_TOLD

    def height(row: Row) -> float:
        kl: float = max(row.quality.get("kl_to_parent", 0.0), _LEAST_KL)
        return kl if by_kl else float(row.quality["perplexity"] / base)

    def paint(axes: Any) -> None:
        axes.set_yscale("log")
        labels = []
        for row in shown:
            word = row.name.split()[0]
            colour = _COLOURS.get(word, MUTED)
            place = (row.size_bytes / 1e6, height(row))
            axes.plot(*place, "o" if word == "penjing" else "s", color=colour, markersize=5)
            labels.append((row.name.removeprefix(f"{word} ") if word in _COLOURS else row.name, place))
        for word, colour in _COLOURS.items():
            if any(row.name.startswith(word) for row in shown):
                axes.plot([], [], "o" if word == "penjing" else "s", color=colour, label=word)
        ticks = (0.0001, 0.001, 0.01, 0.1, 1) if by_kl else (1, 1.5, 2, 3, 5, 10, 20)
        axes.set_yticks(ticks, [f"{tick:g}" + "×" * (not by_kl) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("file, MB")
        axes.set_ylabel("KL to the parent, nats" if by_kl else "perplexity over the parent's")
        axes.margins(x=0.12)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        label_points(axes, labels, size=6)

    draw(path, paint, size=(7.2, 4.4))
