"""compare: several models side by side."""

from __future__ import annotations

from penjing.cli._measured import measured
from penjing.cli._measuring import NumWindows, Parent, Repeats, Text, What, WindowLength, measure_all
from penjing.cli._show import emit
from penjing.cli._values import Json, Models, Threads

PANEL = "Judge it"


def command(
    models: Models,
    what: What = "",
    text: Text = None,
    parent: Parent = None,
    windows: NumWindows = None,
    window_length: WindowLength = 512,
    threads: Threads = None,
    repeats: Repeats = 5,
    as_json: Json = False,
) -> None:
    """Side by side on the same work, in one run: same windows of text, speeds taken in turn."""
    found = measure_all(
        models,
        what=what,
        text=text,
        parent=parent,
        windows=windows,
        window_length=window_length,
        threads=threads,
        repeats=repeats,
    )
    names = [result["model"] for result in found]
    emit({"models": found}, as_json, lambda console: console.print(measured(names, found)))
