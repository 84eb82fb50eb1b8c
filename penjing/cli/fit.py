"""fit: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from penjing.cli._measured import measured
from penjing.cli._show import emit, note, number, pairs, progress, size
from penjing.cli._values import Force, Json, MaxMemory, MaxMinutes, Model, Seed, corpus, size_bytes
from penjing.errors import PenjingError

PANEL = "Make it small"
RESUME = "run the same command again; finished parts are not done twice"
_TOLD = ("before", "after", "seconds", "peak_rss_bytes", "predicted")


def command(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT.penjing", help="File to write.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="FILE", help="Your text: a file, a folder of them, or python-docs.", show_default=False
        ),
    ],
    max_bytes: Annotated[
        str | None, typer.Option("--max-bytes", metavar="SIZE", help="For example 80MB or 76MiB.", show_default=False)
    ] = None,
    device: Annotated[
        Path | None,
        typer.Option("--device", metavar="FILE", help="device.toml of `penjing probe`.", show_default=False),
    ] = None,
    min_speed: Annotated[
        float | None, typer.Option("--min-speed", help="Decoded tokens/s on the device.", show_default=False)
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option("--max-loss", help="Held-out perplexity may grow by this fraction.", show_default=False),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", min=0.0, help="To spend on learning from the parent what quantizing lost.", show_default=False
        ),
    ] = None,
    max_memory: MaxMemory = None,
    max_minutes: MaxMinutes = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Search, recover, pack, prove: the smallest model that still does the job, with the evidence."""
    limit = size_bytes(max_bytes) if max_bytes is not None else None
    if limit is None and min_speed is None and max_loss is None:
        raise PenjingError("no limit to fit to", where="penjing fit", attempt="--max-bytes 80MB")
    from penjing import api

    with progress() as report:
        fitted = api.open(model).fit(
            out,
            data=corpus(data),
            max_bytes=limit,
            device=device,
            min_speed=min_speed,
            max_loss=max_loss,
            minutes=minutes,
            max_memory=size_bytes(max_memory) if max_memory is not None else None,
            max_seconds=60 * max_minutes if max_minutes is not None else None,
            seed=seed,
            force=force,
            progress=report,
            tell=note,
        )
    assert fitted.evidence is not None  # it was written here
    record = fitted.evidence.to_json()
    found = {"out": str(out)} | {key: record[key] for key in _TOLD}
    emit(found, as_json, lambda console: _show(console, found))


def _show(console: Console, found: dict[str, Any]) -> None:
    console.print(measured(["before", "after"], [found["before"], found["after"]]))
    rows = [
        ("wrote", str(found["out"])),
        ("took", f"{number(found['seconds'])} s, {size(found['peak_rss_bytes'])} of memory at most"),
    ]
    console.print("", pairs(rows), sep="\n")
