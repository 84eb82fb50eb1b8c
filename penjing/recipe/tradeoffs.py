"""Ways to adapt as a picture: quality against trained parameters, time and memory, in three panels side by side.

Quality is accuracy, with 95% intervals, where answers were judged, else held-out loss; the base is a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from penjing.errors import PenjingError
from penjing.recipe.pictures import INK, MUTED, check_plot, draw

#: what is on the horizontal axis: a row's key, its scale, what it is called
_PANELS: Final = (
    ("trained_parameters", 1.0, "trained parameters"),
    ("seconds", 1.0, "seconds of training"),
    ("peak_rss_bytes", 1e9, "peak memory, GB"),
)
#: colours that people with any colour vision tell apart (Okabe and Ito, 2008), and shapes
_COLORS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
_SHAPES: Final = "osD^vPX*<>"


def draw_tradeoffs(found: Mapping[str, Any], path: Path) -> None:
    """Draw what `recipe.adapting.compare` found. Raises PenjingError where it cannot be."""
    check_plot(path)
    rows = [row for row in found["methods"] if "failed" not in row]
    if not rows:
        raise PenjingError("no method was trained", where=str(path))
    judged = "accuracy" in found["base"]
    from matplotlib.ticker import EngFormatter, NullFormatter

    def paint(axes_P: Any) -> None:
        for axes, (name, scale, label) in zip(axes_P, _PANELS, strict=True):
            for number, row in enumerate(rows):
                _point(axes, row[name] / scale, row, number, judged)
            base = found["base"]["accuracy"]["value"] if judged else found["base"]["loss"]
            axes.axhline(base, color=MUTED, linewidth=1, linestyle="--", label="the base")
            axes.set_xlabel(label)
            axes.tick_params(colors=INK)
            axes.margins(x=0.12, y=0.12)
        axes_P[0].set_xscale("log")
        axes_P[0].xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes_P[0].xaxis.set_minor_formatter(NullFormatter())
        axes_P[0].set_ylabel("held-out accuracy" if judged else "held-out loss, nats a token")
        axes_P[1].set_xlim(left=0, right=1.15 * max(row["seconds"] for row in rows))
        axes_P[2].set_xlim(left=0, right=1.15 * max(row["peak_rss_bytes"] for row in rows) / 1e9)
        axes_P[0].figure.legend(*axes_P[0].get_legend_handles_labels(), loc="outside right center", frameon=False)

    draw(path, paint, size=(10.0, 3.4), panels=len(_PANELS))


def _point(axes: Any, at: float, row: Mapping[str, Any], number: int, judged: bool) -> None:
    value = row["accuracy"]["value"] if judged else row["loss"]
    ends = [[value - row["accuracy"]["low"]], [row["accuracy"]["high"] - value]] if judged else None
    axes.errorbar(
        at,
        value,
        yerr=ends,
        fmt=_SHAPES[number % len(_SHAPES)],
        color=_COLORS[number % len(_COLORS)],
        markersize=7,
        markerfacecolor="none",  # one that lies over another hides nothing
        markeredgewidth=1.6,
        elinewidth=1,
        label=row["method"],
    )
