"""The front of several models as a picture: file size against perplexity, and the line below which none lies."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from penjing.errors import PenjingError
from penjing.files import write_file
from penjing.recipe.plots import Point

#: what a picture may be, by its name's ending
KINDS: Final = ("png", "svg", "pdf")
_INK, _MUTED, _ACCENT = "#1f2328", "#8b949e", "#1a7f37"


def check_plot(path: Path) -> None:
    """Raise PenjingError unless a picture can be written there."""
    if path.suffix.removeprefix(".") not in KINDS:
        names = ", ".join(f"{path.stem}.{kind}" for kind in KINDS)
        raise PenjingError(
            f"a picture cannot be a {path.suffix or 'file without ending'}", where="--plot", attempt=names
        )
    if not path.parent.is_dir():
        raise PenjingError("there is no such folder", where=str(path.parent), attempt=f"mkdir -p {path.parent}")
    _matplotlib()


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both size and quality, the smallest first; of two that are equal the first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.size_bytes, point.value)):
        if not best or point.value < best[-1].value:
            best.append(point)
    return best


def draw_front(points: Sequence[Point], path: Path, *, unit: str) -> None:
    """Write the picture. Raises PenjingError where it cannot be."""
    check_plot(path)
    mpl, figure_class = _matplotlib()
    best = front(points)
    with mpl.rc_context(
        {"font.size": 9, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = figure_class(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.step(
            [point.size_bytes / 1e6 for point in best],
            [point.value for point in best],
            where="post",
            color=_ACCENT,
            linewidth=1,
        )
        for point in points:
            color = _ACCENT if point in best else _MUTED
            place = (point.size_bytes / 1e6, point.value)
            axes.plot(*place, "o", color=color, markersize=6)
            axes.annotate(point.label, place, xytext=(6, 5), textcoords="offset points", color=_INK)
        axes.set_xlabel("file, MB")
        axes.set_ylabel(unit)
        axes.margins(x=0.15, y=0.15)
        buffer = io.BytesIO()
        kind = path.suffix.removeprefix(".")
        figure.savefig(buffer, format=kind, dpi=160, metadata={"CreationDate": None} if kind == "pdf" else None)
    write_file(path, buffer.getvalue())


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PenjingError(
            f"{error.name} is not installed", where="--plot", attempt="pip install 'penjing[fit]'"
        ) from error
    return mpl, Figure
