"""prepare: weights that compute the same and are easier to quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penjing.cli._show import emit, number, pairs, progress, size
from penjing.cli._values import Force, Json, Model, Seed, settings, text_to_learn
from penjing.errors import PenjingError

PANEL = "Make it small"
RESUME = "run the same command again; it goes on after the last whole part"


def command(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False)],
    method: Annotated[str, typer.Option("--method", help="awq or rotate, see `penjing list quant`.")] = "rotate",
    entries: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Text for methods that go by it, python-docs, or self: what the model writes.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a float child that computes what its parent does; `quantize` it next."""
    spec, overrides = settings(entries or [])
    if overrides:
        raise PenjingError("a model is prepared as a whole", where="--set", attempt="--set KEY=VALUE, without a glob")
    from penjing import api

    with progress() as report:
        child = api.open(model).prepare(
            out,
            method=method,
            data=text_to_learn(data) if data else None,
            seed=seed,
            force=force,
            progress=report,
            **spec,
        )
    assert child.evidence is not None  # it was written here
    found = {"out": str(out)} | child.evidence.to_json()
    rows = [
        ("wrote", found["out"]),
        ("took", f"{number(found['seconds'])} s, {size(found['peak_rss_bytes'])} of memory at most"),
        ("next", f"penjing quantize {found['out']} {found['out'].rstrip('/')}-q"),
    ]
    emit(found, as_json, lambda console: console.print(pairs(rows)))
