"""measure: evidence for what is there now."""

from __future__ import annotations

from penjing.cli._measured import measured
from penjing.cli._measuring import NumWindows, Parent, Repeats, Text, What, WindowLength, measure_all
from penjing.cli._show import emit
from penjing.cli._values import Json, Model, Threads

PANEL = "Judge it"


def command(
    model: Model,
    what: What = "",
    text: Text = None,
    parent: Parent = None,
    windows: NumWindows = None,
    window_length: WindowLength = 512,
    threads: Threads = None,
    repeats: Repeats = 5,
    as_json: Json = False,
) -> None:
    """Quality on a text, speed against this machine's limit, memory of a fresh process: of this very file."""
    found = measure_all(
        [model],
        what=what,
        text=text,
        parent=parent,
        windows=windows,
        window_length=window_length,
        threads=threads,
        repeats=repeats,
    )[0]
    emit(found, as_json, lambda console: console.print(measured([found["model"]], [found])))
