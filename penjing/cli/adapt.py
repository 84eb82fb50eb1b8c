"""adapt: learn from examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from penjing.cli._show import emit, number, pairs, progress, size
from penjing.cli._values import Force, Json, Model, Seed, settings
from penjing.cli.data import columns

PANEL = "Make it small"
#: what `api.Model.adapt` calls what is no setting of a method
_OTHERS = {"train", "columns", "question", "validation"}
RESUME = "run the same command again; it goes on from where it was and ends with the same bytes"


def command(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False)],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", metavar="DATA", help="Examples, see `penjing data`; once for each task.", show_default=False
        ),
    ],
    method: Annotated[str, typer.Option("--method", help="See `penjing list adapt`.")] = "lora",
    entries: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, e.g. rank=8.", show_default=False),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(
            "--train",
            metavar="KEY=VALUE",
            help="How to train, e.g. epochs=3, rate=1e-3, minutes=15.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="ROLE=NAME", help="A column, e.g. text=body.", show_default=False),
    ] = None,
    question: Annotated[str, typer.Option("--question", help="How a text to classify is asked about.")] = "{text}",
    validation: Annotated[
        float, typer.Option("--validation", min=0, max=0.9, help="Fraction kept apart to choose the best weights.")
    ] = 0.1,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write an adapter in peft's format, or an adapted child where the weights themselves change."""
    spec, overrides = settings(entries or [])
    how, others = settings(train or [])
    if overrides or others:
        raise typer.BadParameter("KEY=VALUE, without a pattern", param_hint="--set, --train")
    if not _OTHERS.isdisjoint(spec):
        raise typer.BadParameter("they have options of their own: " + ", ".join(sorted(_OTHERS)), param_hint="--set")
    from penjing import api

    with progress() as report:
        report("reading", 0, 0)
        done = api.open(model).adapt(
            out,
            data,
            method=method,
            train=how,
            columns=columns(column or []),
            question=question,
            validation=validation,
            seed=seed,
            force=force,
            progress=report,
            **spec,
        )
    found = {"out": str(out)} | done.to_json()
    emit(found, as_json, lambda console: _show(console, found))


def _show(console: Console, found: dict[str, Any]) -> None:
    before, after = found["before"], found["after"]
    ran = after["training"]
    share = 100 * after["trained_parameters"] / after["parameters"]
    loss = "held-out loss" if ran["validation"] else "loss of one step"
    rows = [
        ("wrote", found["out"]),
        ("trained", f"{after['trained_parameters']:,} parameters, {number(share)}% of them"),
        (loss, f"{number(before['loss'], 4)} → {number(after['loss'], 4)} (step {ran['best_step']})"),
        *([("accuracy", accuracy(after))] if "accuracy" in after else []),
        ("tokens", f"{ran['tokens']:,} in {ran['steps']} steps, {number(ran['tokens'] / ran['seconds'])} a second"),
        ("took", f"{number(found['seconds'])} s, {size(found['peak_rss_bytes'])} of memory at most"),
    ]
    console.print(pairs(rows))


def accuracy(judged: dict[str, Any]) -> str:
    """With its 95% interval, where answers were judged."""
    found = judged.get("accuracy")
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})" if found else ""
