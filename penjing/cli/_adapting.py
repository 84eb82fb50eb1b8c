"""`adapt --compare`: which settings are for which method, and what came of each."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from penjing.cli._show import number, progress, size, table
from penjing.errors import PenjingError

Overrides = Sequence[tuple[str, Mapping[str, Any]]]

#: what held-out data may be judged by besides its loss, and what that is called
_JUDGED = {"accuracy": "accuracy (95%)", "margin": "chosen over rejected"}


def compare(
    out: Path, methods: Sequence[str], *, spec: Overrides, train: Overrides, plot: Path | None, **work: Any
) -> dict[str, Any]:
    """Run all methods; draw what was found. `spec` and `train`: settings, with a glob of the methods they are for."""
    from penjing.recipe.adapting import Job
    from penjing.recipe.adapting import compare as run_all
    from penjing.recipe.pictures import check_plot
    from penjing.recipe.tradeoffs import draw_tradeoffs

    if plot is not None:
        check_plot(plot)
    specs, trains = _by_method(methods, spec, "--set"), _by_method(methods, train, "--train")
    jobs = [Job(out=str(out), method=method, spec=specs[method], train=trains[method], **work) for method in methods]
    with progress() as report:
        found = run_all(jobs, out, progress=report)
    if plot is not None:
        draw_tradeoffs(found, plot)
    return found


def _by_method(methods: Sequence[str], overrides: Overrides, option: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {method: {} for method in methods}
    for glob, settings in overrides:
        meant = fnmatch.filter(methods, glob)
        if not meant:
            raise PenjingError(f"no method is called {glob!r}", where=option, attempt="one of: " + ", ".join(methods))
        for method in meant:
            found[method] |= settings
    return found


def show(console: Console, found: Mapping[str, Any]) -> None:
    judged = [name for name in _JUDGED if name in found["base"]]
    shown = table(
        "method", "trained", "held-out loss", *(_JUDGED[name] for name in judged), "steps", "seconds", "memory"
    )
    blank = [""] * 3
    shown.add_row("the base", "0", f"{found['base']['loss']:.4f}", *_judged(found["base"]), *blank)
    for row in found["methods"]:
        if "failed" in row:
            shown.add_row(row["method"], "failed", *[""] * len(judged), "", *blank)
            continue
        shown.add_row(
            row["method"],
            f"{row['trained_parameters']:,}",
            f"{row['loss']:.4f}",
            *_judged(row),
            f"{row['steps']:,}",
            number(row["seconds"]),
            size(row["peak_rss_bytes"]),
        )
    console.print(shown)
    for row in found["methods"]:
        if "failed" in row:
            console.print(f"{row['method']}: {row['failed']['fact']}; try {row['failed']['attempt']}", markup=False)


def _judged(row: Mapping[str, Any]) -> list[str]:
    if "margin" in row:
        return [f"{row['margin']:+.2f} nats"]
    return [accuracy(row)] if "accuracy" in row else []


def accuracy(judged: Mapping[str, Any]) -> str:
    """With its 95% interval, where answers were judged."""
    found = judged.get("accuracy")
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})" if found else ""


def margins(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """By how much the chosen answers of held-out preferences are likelier."""
    return f"{before['margin']:+.2f} → {after['margin']:+.2f} nats an answer"
