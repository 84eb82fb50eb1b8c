"""What `measure` and `compare` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penjing.cli._show import progress
from penjing.cli._values import corpus, words

if TYPE_CHECKING:
    from penjing.runtime.session import KvKind

What = Annotated[
    str,
    typer.Option("--what", help="Some of quality,speed,memory; by default all that is possible.", show_default=False),
]
Text = Annotated[
    str | None,
    typer.Option("--text", metavar="FILE", help="Text file, folder of them, or python-docs.", show_default=False),
]
Parent = Annotated[
    str | None,
    typer.Option("--parent", metavar="MODEL", help="Also KL divergence and agreement to it.", show_default=False),
]
NumWindows = Annotated[int | None, typer.Option("--windows", min=1, help="Default: all.", show_default=False)]
WindowLength = Annotated[int, typer.Option("--window-length", min=2, help="Tokens of a window.")]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Rounds of the speed measurement.")]


def measure_all(
    models: Sequence[str],
    *,
    what: str,
    text: str | None,
    parent: str | None,
    windows: int | None,
    window_length: int,
    threads: int | None,
    repeats: int,
    kv: KvKind,
) -> list[dict[str, Any]]:
    """One result a model, all on the same work in one run."""
    from penjing.checkpoint import open_checkpoint
    from penjing.measure.compare import compare, is_packed

    checkpoints = [open_checkpoint(model) for model in models]
    packed = any(is_packed(checkpoint) for checkpoint in checkpoints)
    possible = (["quality"] if text else []) + (["speed", "memory"] if packed else [])
    with progress() as report:
        return compare(
            checkpoints,
            what=words(what) or possible or ["quality"],
            corpus=corpus(text) if text else None,
            parent=open_checkpoint(parent) if parent else None,
            window=window_length,
            max_windows=windows,
            threads=threads,
            repeats=repeats,
            kv=kv,
            progress=report,
        )
