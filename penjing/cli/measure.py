"""measure: evidence for what is there now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penjing.cli._choosing import KINDS, show_calibration, show_sensitivity
from penjing.cli._measured import measured
from penjing.cli._measuring import Parent, Repeats, Text, measure_all
from penjing.cli._show import emit
from penjing.cli._values import Json, Kv, Model, Seed, Threads, whole_numbers
from penjing.errors import PenjingError

PANEL = "Judge it"
_CALIBRATION_WINDOWS, _CALIBRATION_LENGTHS = "4,16", "128,512"

What = Annotated[
    str,
    typer.Option(
        "--what",
        help="Some of quality,speed,memory; by default all that is possible. Or, before anything is quantized, which "
        "parts hurt: sensitivity; or what calibration text does: calibration.",
        show_default=False,
    ),
]
Numbers = Annotated[
    str, typer.Option("--windows", metavar="N", help="Default: all. calibration: several, as in 4,16,64.")
]
Lengths = Annotated[
    str, typer.Option("--window-length", metavar="N", help="Tokens of a window; 512. calibration: several.")
]
By = Annotated[str, typer.Option("--by", help="sensitivity: a part is a block, a kind of matrix, or a matrix.")]
Method = Annotated[
    str, typer.Option("--method", help="sensitivity, calibration: the technique that is tried.", show_default=False)
]
Bits = Annotated[str, typer.Option("--bits", help="sensitivity: one or several, as in 2,3,4. calibration: one.")]
Entries = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the technique, e.g. group_size=64."),
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="FILE", help="Calibration text, or python-docs; calibration: may be given again."),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="PICTURE", help="sensitivity: draw it, as .png, .svg or .pdf.")
]
Layers = Annotated[int, typer.Option("--layers", min=1, help="calibration: so many layers are rounded.")]


def command(
    model: Model,
    what: What = "",
    text: Text = None,
    parent: Parent = None,
    windows: Numbers = "",
    window_length: Lengths = "",
    by: By = "block",
    method: Method = "",
    bits: Bits = "3",
    entries: Entries = None,
    data: Data = None,
    layers: Layers = 6,
    plot: Plot = None,
    threads: Threads = None,
    repeats: Repeats = 5,
    kv: Kv = "f16",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Quality on a text, speed against this machine's limit, memory of a fresh process: of this very file."""
    if what == "calibration":
        show_calibration(
            model,
            data=data or [],
            windows=whole_numbers(windows or _CALIBRATION_WINDOWS, "--windows"),
            lengths=whole_numbers(window_length or _CALIBRATION_LENGTHS, "--window-length", least=2),
            method=method or "scale_search",
            bits=_one(bits, "--bits"),
            entries=entries or [],
            layers=layers,
            seed=seed,
            as_json=as_json,
        )
        return
    length = _one(window_length or "512", "--window-length", least=2)
    count = _one(windows, "--windows") if windows else None
    if what == "sensitivity":
        show_sensitivity(
            model,
            text=text,
            windows=count,
            length=length,
            by=by,
            method=method or "rtn",
            bits=whole_numbers(bits, "--bits"),
            entries=entries or [],
            data=data or [],
            plot=plot,
            as_json=as_json,
        )
        return
    if plot is not None or data or entries or method:
        raise PenjingError(
            "these are options of what helps to choose", where="--plot, --data, --set, --method",
            attempt="--what " + " or --what ".join(KINDS),
        )  # fmt: skip
    found = measure_all(
        [model],
        what=what,
        text=text,
        parent=parent,
        windows=count,
        window_length=length,
        threads=threads,
        repeats=repeats,
        kv=kv,
    )[0]
    emit(found, as_json, lambda console: console.print(measured([found["model"]], [found])))


def _one(text: str, option: str, least: int = 1) -> int:
    found = whole_numbers(text, option, least=least)
    if len(found) > 1:
        raise PenjingError("one number is asked for", where=option, attempt=f"{option} {found[0]}")
    return found[0]
