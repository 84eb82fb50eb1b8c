"""list: the techniques that there are."""

from __future__ import annotations

import ast
import pkgutil
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from penjing.cli._show import emit, table
from penjing.cli._values import Json
from penjing.errors import PenjingError

PANEL = "Look"

#: rooms whose files are techniques, and what `--method` or a config names with them
ROOMS = {
    "adapt": "adapt --method",
    "quant": "quantize --method; awq, rotate: prepare --method",
    "format.families": "model families that open",
}


def command(
    room: Annotated[str, typer.Argument(metavar="[ROOM]", help=", ".join(ROOMS), show_default=False)] = "",
    as_json: Json = False,
) -> None:
    """Techniques, one line each, from the files' own docstrings."""
    if room and room not in ROOMS:
        raise PenjingError(f"no room {room!r}", where="penjing list", attempt=", ".join(ROOMS))
    found = {name: techniques(name) for name in ROOMS if room in ("", name)}

    def show(console: Console) -> None:
        for name, entries in found.items():
            rows = table(name, f"<{ROOMS[name]}>")
            for technique, line in entries.items():
                rows.add_row(technique, line)
            console.print(rows, "")

    emit(found, as_json, show)


def techniques(room: str) -> dict[str, str]:
    """Name to the first line of the docstring. The files are read, not run: some would import torch."""
    spec = find_spec(f"penjing.{room}")
    folders = list(spec.submodule_search_locations or []) if spec else []
    names = [module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_")]
    return {
        name: _first_line(next(Path(f) / f"{name}.py" for f in folders if (Path(f) / f"{name}.py").exists()))
        for name in names
    }


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
