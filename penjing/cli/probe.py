"""probe: what this machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from penjing.cli._show import emit, note, number, pairs, size
from penjing.cli._values import Force, Json, Threads
from penjing.errors import PenjingError

PANEL = "Look"


def command(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write it to a device.toml.", show_default=False)
    ] = None,
    threads: Threads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure this box: instruction set, cores, read bandwidth, int8 rate, memory."""
    from penjing.measure import probe

    if out is not None and out.exists() and not force:
        raise PenjingError("it is already there", where=str(out), attempt="--force, or another name")
    found = probe.probe(threads=threads)
    if out is not None:
        probe.write_device(out, found)
        note(f"wrote {out}")
    values = found.to_json()
    emit(values, as_json, lambda console: _show(console, values))


def _show(console: Console, found: dict[str, Any]) -> None:
    rows = [
        ("instruction set", found["isa"]),
        ("cores", str(found["cores"])),
        ("read bandwidth", f"{number(found['read_gb_per_s'])} GB/s"),
        ("int8 rate", f"{number(found['int8_gmac_per_s'])} G multiply-adds/s"),
        ("memory", size(found["memory_bytes"])),
    ]
    console.print(pairs(rows))
