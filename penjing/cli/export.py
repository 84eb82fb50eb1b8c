"""export: the same model for other programs."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from penjing.cli._show import emit, pairs, progress, size
from penjing.cli._values import Force, Json, Model

PANEL = "Make it small"


def command(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File or folder to write.", show_default=False)],
    to: Annotated[str, typer.Option(help="gguf (llama.cpp), hf (transformers) or compressed-tensors (vLLM).")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a model, quantized or not, in the format of another program; codes stay what they are where it has them."""
    from penjing.checkpoint import open_checkpoint
    from penjing.stages.exports import export

    with progress() as report:
        done = export(open_checkpoint(model), out, to=to, force=force, progress=report)
    found = {"out": str(done.out), "to": to, "bytes": done.bytes, "types": done.types, "notes": done.notes}
    emit(found, as_json, lambda console: _show(console, found))


def _show(console: Console, found: dict[str, Any]) -> None:
    rows = [
        ("wrote", found["out"]),
        ("size", size(found["bytes"])),
        ("matrices", "\n".join(f"{count} in {kind}" for kind, count in found["types"].items())),
    ]
    if found["notes"]:
        rows.append(("changed", "\n".join(_by_layer(found["notes"]))))
    console.print(pairs(rows))


def _by_layer(notes: list[str]) -> list[str]:
    """What is said of several layers, once."""
    counted = Counter(re.sub(r"\.\d+\.", ".*.", note) for note in notes)
    return [note if count == 1 else f"{count} x {note}" for note, count in counted.items()]
