"""Pictures as files of their own: .png, .svg or .pdf."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from penjing.errors import PenjingError
from penjing.files import write_file

#: what a picture may be, by its name's ending
KINDS: Final = ("png", "svg", "pdf")
INK, MUTED, ACCENT = "#1f2328", "#8b949e", "#1a7f37"


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


def draw(path: Path, paint: Callable[[Any], None], *, size: tuple[float, float], panels: int = 1) -> None:
    """Write what `paint` draws on axes, or on a row of them that share their height; `size` in inches.

    Raises PenjingError where it cannot be.
    """
    check_plot(path)
    mpl, figure_class = _matplotlib()
    with mpl.rc_context(
        {"font.size": 9, "text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = figure_class(figsize=size, layout="constrained")
        paint(figure.subplots(1, panels, sharey=True))
        buffer = io.BytesIO()
        kind = path.suffix.removeprefix(".")
        figure.savefig(buffer, format=kind, dpi=160, metadata={"CreationDate": None} if kind == "pdf" else None)
    write_file(path, buffer.getvalue())


#: where a label may stand beside its point, the nearest first: right and up in heights of its letters, the end there
_BESIDE: Final = [
    (to, up, end)
    for up in (0.5, -1.3, 1.8, -2.6, 3.1, -3.9, 4.4, -5.2, 5.7)
    for to, end in ((0.7, "left"), (-0.7, "right"))
]


def label_points(axes: Any, labels: Sequence[tuple[str, tuple[float, float]]], *, size: float = 9) -> None:
    """Write a label beside each point, which is in data's units, so that labels do not cover each other or points; a
    thin line leads to those that had to stand further off.

    To be called last: what changes the axes after it moves points, not what was found free.
    """
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # from now on places are known
    left, right, taken = axes.bbox.x0, axes.figure.bbox.x1, []
    for x, y in (axes.transData.transform(at) for _, at in labels):
        taken.append(Bbox.from_bounds(x - 3, y - 3, 6, 6))

    def stands(label: Any, beside: tuple[float, float, str]) -> bool:
        label.xyann = size * beside[0], size * beside[1]
        label.set_ha(beside[2])
        box = label.get_window_extent()
        return bool(left <= box.x0 and box.x1 <= right and not box.count_overlaps(taken))

    for text, at in labels:
        label = axes.annotate(text, at, xytext=(0, 0), textcoords="offset points", color=INK, fontsize=size)
        beside = next((beside for beside in _BESIDE if stands(label, beside)), _BESIDE[0])
        stands(label, beside)
        taken.append(label.get_window_extent())
        if beside not in _BESIDE[:4]:
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
            axes.annotate("", at, xytext=label.xyann, textcoords="offset points", arrowprops=line)


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PenjingError(
            f"{error.name} is not installed", where="--plot", attempt="pip install 'penjing[fit]'"
        ) from error
    return mpl, Figure
