"""The front of several models as a picture: file size against perplexity, and the line below which none lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penjing.recipe.pictures import ACCENT, MUTED, draw, label_points
from penjing.recipe.plots import Point


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both size and quality, the smallest first; of two that are equal the first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.size_bytes, point.value)):
        if not best or point.value < best[-1].value:
            best.append(point)
    return best


def draw_front(points: Sequence[Point], path: Path, *, unit: str) -> None:
    """Write the picture. Raises PenjingError where it cannot be."""
    best = front(points)

    def paint(axes: Any) -> None:
        axes.step(
            [point.size_bytes / 1e6 for point in best],
            [point.value for point in best],
            where="post",
            color=ACCENT,
            linewidth=1,
        )
        for point in points:
            color = ACCENT if point in best else MUTED
            axes.plot(point.size_bytes / 1e6, point.value, "o", color=color, markersize=6)
        axes.set_xlabel("file, MB")
        axes.set_ylabel(unit)
        axes.margins(x=0.15, y=0.15)
        label_points(axes, [(point.label, (point.size_bytes / 1e6, point.value)) for point in points])

    draw(path, paint, size=(6.4, 4.0))
