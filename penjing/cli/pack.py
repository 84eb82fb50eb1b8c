"""pack: one file that runs on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from penjing.cli._show import emit, number, pairs, progress, size
from penjing.cli._values import Force, Json, Model

PANEL = "Make it small"


def command(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT.penjing", help="File to write.", show_default=False)],
    floats: Annotated[str, typer.Option("--float", help="What is not quantized becomes f16, bf16 or f32.")] = "f16",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the .penjing file: weights as the kernels read them, tokenizer, chat template, evidence."""
    from penjing.checkpoint import open_checkpoint
    from penjing.stages import pack

    with progress() as report:
        evidence = pack.pack(open_checkpoint(model), out, float_kind=floats, force=force, progress=report)
    found = {"out": str(out)} | evidence.to_json()
    emit(found, as_json, lambda console: _show(console, found))


def _show(console: Console, found: dict[str, Any]) -> None:
    after = found["after"]
    rows = [
        ("wrote", found["out"]),
        ("size", f"{size(found['before']['bytes'])} → {size(after['bytes'])}"),
        ("bits per weight", f"{number(after['bits_per_weight'], 4)}, counting everything in the file"),
        ("next", f"penjing run {found['out']} 'your prompt'"),
    ]
    console.print(pairs(rows))
