"""What a person or a script sees: tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_SECONDS: Final = 5.0

Report = Callable[[str, int, int], None]


def emit(result: dict[str, Any], as_json: bool, show: Callable[[Console], None]) -> None:
    """For a person what `show` prints; for a script one JSON object as the last line of stdout, the rest on stderr."""
    if as_json:
        show(Console(stderr=True, highlight=False))
        print(json.dumps(finite(result), ensure_ascii=False, allow_nan=False), flush=True)
    else:
        show(Console(highlight=False))


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become their names."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def note(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def table(*columns: str, title: str | None = None) -> Table:
    """A table without a frame; columns after the first are numbers and align right. A name in <> aligns left."""
    found = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left", header_style="bold"
    )
    for index, column in enumerate(columns):
        left = index == 0 or column.startswith("<")
        found.add_column(column.strip("<>"), justify="left" if left else "right", overflow="fold")
    return found


def pairs(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and what they are."""
    found = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    found.add_column(style="bold", no_wrap=True)
    found.add_column(overflow="fold")
    for name, value in rows:
        found.add_row(name, value)
    return found


def size(num_bytes: float) -> str:
    """Bytes for a person, decimal: 79.9 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(num_bytes) >= 0.9995 * scale:
            return (
                f"{num_bytes / scale:.3g} {unit}" if num_bytes < 999.5 * scale else f"{num_bytes / scale:,.0f} {unit}"
            )
    return f"{num_bytes:.0f} B"


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, no exponent where a person would write none."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}" if places <= 8 else f"{value:.{digits}g}"


@contextlib.contextmanager
def progress() -> Iterator[Report]:
    """Draws what long calls report: bars on a terminal, a line now and then anywhere else."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description:<24.24}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:g}/{task.total:g}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield _Bars(bars)
    else:
        yield _Lines()


class _Bars:
    """One bar: what is under way changes with nearly every step."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._total = -1

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._task is None or total != self._total:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task, self._total = self._bars.add_task(what, total=total or None), total
        self._bars.update(self._task, description=what, completed=done)


class _Lines:
    """A line at the first step, at the last, and every few seconds between."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = -1
        self._said = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if total == self._total and done != total and now - self._said < PLAIN_SECONDS:
            return
        self._total, self._said = total, now
        note(f"{what}: {done}/{total}" if total else f"{what}: {done}")
