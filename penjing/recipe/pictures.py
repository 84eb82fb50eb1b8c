"""Pictures as files of their own: .png, .svg or .pdf."""

from __future__ import annotations

import io
from collections.abc import Callable
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


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PenjingError(
            f"{error.name} is not installed", where="--plot", attempt="pip install 'penjing[fit]'"
        ) from error
    return mpl, Figure
