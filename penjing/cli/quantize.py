"""quantize: fewer bits a weight."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from penjing.cli._show import emit, note, number, pairs, progress, size
from penjing.cli._values import Force, Json, MaxMemory, MaxMinutes, Model, Seed, settings, size_bytes, text_to_learn

PANEL = "Make it small"
RESUME = "run the same command again; it goes on after the last whole part"


def command(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False)],
    method: Annotated[str, typer.Option("--method", help="See `penjing list quant`.")] = "rtn",
    entries: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="[GLOB:]KEY=VALUE",
            help="A setting of the method, for all matrices or those that match, e.g. bits=4, 'layers.*.down:bits=6'.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Text for methods that weigh errors by it, python-docs, or self: what the model writes.",
            show_default=False,
        ),
    ] = None,
    windows: Annotated[
        int, typer.Option("--windows", min=1, help="Of 512 tokens, to calibrate on, where the text has as many.")
    ] = 16,
    by_block: Annotated[
        bool,
        typer.Option("--by-block", help="Errors count by what each layer puts out; one layer in memory at a time."),
    ] = False,
    max_memory: MaxMemory = None,
    max_minutes: MaxMinutes = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a quantized child beside an untouched parent."""
    spec, overrides = settings(entries or [])
    from penjing import api

    with progress() as report:
        child = api.open(model).quantize(
            out,
            method=method,
            overrides=overrides,
            data=text_to_learn(data) if data else None,
            calibration_windows=windows,
            by_block=by_block,
            max_bytes=size_bytes(max_memory) if max_memory is not None else None,
            max_seconds=60 * max_minutes if max_minutes is not None else None,
            tell=note,
            seed=seed,
            force=force,
            progress=report,
            **spec,
        )
    assert child.evidence is not None  # it was written here
    found = {"out": str(out)} | child.evidence.to_json()
    emit(found, as_json, lambda console: _show(console, found))


def _show(console: Console, found: dict[str, Any]) -> None:
    before, after = found["before"]["bits_per_weight"], found["after"]["bits_per_weight"]
    rows = [
        ("wrote", found["out"]),
        ("bits per weight", f"{number(before, 4)} → {number(after, 4)} when packed"),
        ("took", f"{number(found['seconds'])} s, {size(found['peak_rss_bytes'])} of memory at most"),
        ("next", f"penjing pack {found['out']} {found['out'].rstrip('/')}.penjing"),
    ]
    console.print(pairs(rows))
