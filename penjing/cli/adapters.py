"""adapters: into a model, out of it again, several as one."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from penjing.cli._show import emit, pairs, size
from penjing.cli._values import Force, Json, Model
from penjing.errors import PenjingError

PANEL = "Make it small"


class Action(str, Enum):
    merge = "merge"
    remove = "remove"
    stack = "stack"


def command(
    action: Annotated[
        Action,
        typer.Argument(help="merge into MODEL, remove from it again, or stack as one file for `run --adapter`."),
    ],
    model: Model,
    adapters: Annotated[
        list[Path], typer.Argument(metavar="ADAPTER… OUT", help="Adapters, then what to write.", show_default=False)
    ],
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="W,W,…", help="A weight for each; 1 by default.", show_default=False),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a model with adapters in its weights, or without one again, or one adapter of several."""
    if len(adapters) < 2:
        raise typer.BadParameter("at least one adapter, then what to write", param_hint="ADAPTER… OUT")
    *chosen, out = adapters
    numbers = _numbers(weights, len(chosen))
    from penjing.checkpoint import open_checkpoint
    from penjing.stages import adapters as stage

    parent = open_checkpoint(model)
    found: dict[str, Any] = {"out": str(out)}
    if action is Action.stack:
        if out.exists() and not force:
            raise PenjingError("it is already there", where=str(out), attempt="--force, or another name")
        made = stage.stack(parent, chosen, out, weights=numbers)
        found |= {"matrices": len(made.additions), "bytes": made.nbytes}
    else:
        sign = -1.0 if action is Action.remove else 1.0
        done = stage.merge(parent, chosen, out, weights=[sign * number for number in numbers], force=force)
        found |= done.to_json()
    emit(found, as_json, lambda console: _show(console, found))


def _numbers(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1.0] * count
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise PenjingError(f"not weights: {text!r}", where="--weights", attempt="numbers, such as 1,0.5") from error


def _show(console: Console, found: dict[str, Any]) -> None:
    rows = [("wrote", found["out"])]
    if "matrices" in found:
        rows.append(("adds to", f"{found['matrices']} matrices, {size(found['bytes'])}"))
    console.print(pairs(rows))
