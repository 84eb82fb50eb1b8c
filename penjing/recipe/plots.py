"""Plots of a report as SVG that takes colours and font from the page, so that it is readable on a dark one too."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from penjing.errors import PenjingError

#: stand-ins that matplotlib draws with, and the page's colours that replace them
_COLORS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)", "#040404": "var(--accent)"}
_INK, _MUTED, _LINE, _ACCENT = _COLORS
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.titlecolor": _INK,
    "text.color": _INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Point:
    """One model: a size in bytes, a quality (lower is better), and whether it is the one that ships."""

    label: str
    size_bytes: float
    value: float
    shipped: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar of stacked values; the last value's colour stands out where `shipped`. `note` is written at its end."""

    label: str
    values: tuple[float, ...]
    note: str = ""
    spread: float = 0.0
    shipped: bool = True


def scatter(points: Sequence[Point], *, title: str, unit: str) -> str:
    """Quality against file size; labels stand beside their points."""

    def paint(axes: Any) -> None:
        for point in points:
            color = _ACCENT if point.shipped else _MUTED
            place = (point.size_bytes / 1e6, point.value)
            axes.plot(*place, "o", color=color, markersize=8 if point.shipped else 6)
            axes.annotate(
                point.label,
                place,
                xytext=(8, 5),
                textcoords="offset points",
                color=_INK if point.shipped else _MUTED,
            )
        axes.set_xlabel("file, MB")
        axes.set_ylabel(unit)
        axes.set_xlim(0, 1.3 * max(point.size_bytes for point in points) / 1e6)
        axes.margins(y=0.25)

    told = "; ".join(f"{point.label}: {point.size_bytes / 1e6:.1f} MB, {point.value:.4g}" for point in points)
    return _draw(paint, title, told, height_inches=3.2)


def bars(entries: Sequence[Bar], *, title: str, unit: str) -> str:
    """Horizontal bars, first on top, with what they amount to at their ends."""

    def paint(axes: Any) -> None:
        for row, entry in enumerate(entries):
            total = sum(entry.values)
            end = total * (1 + entry.spread / 2)
            start = 0.0
            for index, value in enumerate(entry.values):
                last = _ACCENT if entry.shipped else _MUTED
                color = last if index == len(entry.values) - 1 else _LINE
                axes.barh(row, value, left=start, height=0.62, color=color)
                start += value
            if entry.spread:
                axes.errorbar(total, row, xerr=total * entry.spread / 2, color=_INK, capsize=2.5, linewidth=1)
            axes.annotate(entry.note, (end, row), xytext=(6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(entries)), [entry.label for entry in entries])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(sum(entry.values) * (1 + entry.spread / 2) for entry in entries))
        axes.set_xlabel(unit)
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.spines["left"].set_visible(False)

    told = "; ".join(f"{entry.label}: {entry.note}" for entry in entries)
    return _draw(paint, title, told, height_inches=0.6 + 0.34 * len(entries))


def _draw(paint: Callable[[Any], None], title: str, told: str, *, height_inches: float) -> str:
    """What `paint` draws, as an element for a page; `told` is the same in words. Same drawing, same text."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PenjingError(
            f"{error.name} is not installed", where="plots of a report", attempt="pip install 'penjing[fit]'"
        ) from error
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(6.4, height_inches), layout="constrained")
        paint(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), title, told)


def _for_page(text: str, title: str, told: str) -> str:
    """matplotlib's file without its head, comments and fixed size, with the page's colours and ids of its own."""
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    head, body = text.split(">", 1)
    view = re.findall(r'viewBox="([^"]*)"', head)[0]
    prefix = "".join(letter for letter in title if letter.isalnum())
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}-", body)
    for stand_in, color in _COLORS.items():
        body = body.replace(stand_in, color)
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(told)}">{body}'
