"""compare: several models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from penjing.cli._measured import measured
from penjing.cli._measuring import NumWindows, Parent, Repeats, Text, What, WindowLength, measure_all
from penjing.cli._show import emit
from penjing.cli._values import Json, Kv, Models, Threads
from penjing.errors import PenjingError

PANEL = "Judge it"

Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="PICTURE", help="Draw file size against perplexity: .png, .svg or .pdf."),
]


def command(
    models: Models,
    what: What = "",
    text: Text = None,
    parent: Parent = None,
    windows: NumWindows = None,
    window_length: WindowLength = 512,
    threads: Threads = None,
    repeats: Repeats = 5,
    kv: Kv = "f16",
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Side by side on the same work, in one run: same windows of text, speeds taken in turn."""
    if plot is not None:
        _check(plot, what, text)
    found = measure_all(
        models,
        what=what,
        text=text,
        parent=parent,
        windows=windows,
        window_length=window_length,
        threads=threads,
        repeats=repeats,
        kv=kv,
    )
    if plot is not None:
        _draw(plot, found)
    names = [result["model"] for result in found]
    emit({"models": found}, as_json, lambda console: console.print(measured(names, found)))


def _check(plot: Path, what: str, text: str | None) -> None:
    """Before anything is measured."""
    from penjing.cli._values import words
    from penjing.recipe.pictures import check_plot

    if text is None or (what and "quality" not in words(what)):
        raise PenjingError("a front needs quality", where="--plot", attempt="--text FILE, and --what with quality")
    check_plot(plot)


def _draw(plot: Path, found: list[dict[str, Any]]) -> None:
    from penjing.recipe.front import draw_front
    from penjing.recipe.plots import Point

    points = [Point(one["model"], one["bytes"], one["quality"]["perplexity"]) for one in found]
    draw_front(points, plot, unit="held-out perplexity")
