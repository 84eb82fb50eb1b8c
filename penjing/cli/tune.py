"""tune: a quantized child learns from its float parent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from penjing.cli._show import emit, note, number, pairs, progress, size
from penjing.cli._values import Force, Json, MaxMemory, Model, Seed, settings, size_bytes, text_to_learn
from penjing.errors import PenjingError

PANEL = "Make it small"
RESUME = "run the same command again; it goes on from the last state that was kept"


def command(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False)],
    teacher: Annotated[
        str, typer.Option("--teacher", metavar="PARENT", help="The model that was quantized.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Text to learn from, python-docs, or self: what PARENT writes.",
            show_default=False,
        ),
    ],
    method: Annotated[
        str, typer.Option("--method", help="qat: codes and scales. kl_tuning: scales and zero points.")
    ] = "qat",
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0.0, help="To train for.", show_default=False)
    ] = None,
    entries: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the method or of training, e.g. learning_rate=0.003, steps=500, window=256.",
            show_default=False,
        ),
    ] = None,
    max_memory: MaxMemory = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a child that predicts more as its float parent does, its codes of the same size."""
    spec, overrides = settings(entries or [])
    if overrides:
        raise PenjingError("all parts are tuned alike", where="--set", attempt="key=value, without a part's name")
    from penjing import api

    with progress() as report:
        child = api.open(model).tune(
            out,
            teacher=api.open(teacher),
            data=text_to_learn(data),
            method=method,
            minutes=minutes,
            max_bytes=size_bytes(max_memory) if max_memory is not None else None,
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
    before, after = found["before"]["kl_to_parent"], found["after"]["kl_to_parent"]
    step = found["after"]["best_step"]
    best = f"best after {step}" if step else "none was better than the start, which is what was written"
    rows = [
        ("wrote", found["out"]),
        ("KL to the parent", f"{number(before)} → {number(after)} nats a token, on text that was kept apart"),
        ("trained on", f"{found['after']['tokens']:,} tokens in {found['after']['steps']} steps; {best}"),
        ("took", f"{number(found['seconds'])} s, {size(found['peak_rss_bytes'])} of memory at most"),
        ("next", f"penjing pack {found['out']} {found['out'].rstrip('/')}.penjing"),
    ]
    console.print(pairs(rows))
