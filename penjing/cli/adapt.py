"""adapt: learn from examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from penjing.cli import _adapting
from penjing.cli._show import emit, number, pairs, progress, size
from penjing.cli._values import Force, Json, Model, Seed, settings, words
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
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="METHOD,METHOD,…",
            help="Several methods on one budget, each into OUT/METHOD; --set and --train take METHOD:KEY=VALUE too.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="PICTURE",
            help="With --compare, draw quality against parameters, time and memory: .png, .svg or .pdf.",
            show_default=False,
        ),
    ] = None,
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
    spec, train_spec = settings(entries or []), settings(train or [])
    if not _OTHERS.isdisjoint(spec[0]):
        raise typer.BadParameter("they have options of their own: " + ", ".join(sorted(_OTHERS)), param_hint="--set")
    shared: dict[str, Any] = {
        "columns": columns(column or []),
        "question": question,
        "validation": validation,
        "seed": seed,
        "force": force,
    }
    if compare is not None:
        every = [[("*", plain), *overrides] for plain, overrides in (spec, train_spec)]
        found = _adapting.compare(
            out, words(compare), spec=every[0], train=every[1], plot=plot, model=model, data=data, **shared
        )
        emit(found, as_json, lambda console: _adapting.show(console, found))
        return
    if spec[1] or train_spec[1] or plot:
        raise typer.BadParameter("METHOD:KEY=VALUE and --plot need --compare", param_hint="--set, --train, --plot")
    from penjing import api

    with progress() as report:
        report("reading", 0, 0)
        done = api.open(model).adapt(
            out,
            data,
            method=method,
            train=train_spec[0],
            progress=report,
            **shared,
            **spec[0],
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
        *([("accuracy", _adapting.accuracy(after))] if "accuracy" in after else []),
        *([("chosen over rejected", _adapting.margins(before, after))] if "margin" in after else []),
        ("tokens", f"{ran['tokens']:,} in {ran['steps']} steps, {number(ran['tokens'] / ran['seconds'])} a second"),
        ("took", f"{number(found['seconds'])} s, {size(found['peak_rss_bytes'])} of memory at most"),
    ]
    console.print(pairs(rows))
