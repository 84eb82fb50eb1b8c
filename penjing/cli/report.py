"""report: the evidence as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penjing.cli._show import emit, pairs, size
from penjing.cli._values import Force, Json
from penjing.errors import PenjingError

PANEL = "Judge it"


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A .penjing file, or a folder with evidence.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Page to write.")] = Path("report.html"),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw tables and plots from evidence into one self-contained HTML file."""
    if out.exists() and not force:
        raise PenjingError("it is already there", where=str(out), attempt="--force, or another name")
    from penjing.recipe.report import report

    report(run, out)
    found = {"out": str(out), "bytes": out.stat().st_size}
    emit(found, as_json, lambda console: console.print(pairs([("wrote", f"{out} ({size(out.stat().st_size)})")])))
