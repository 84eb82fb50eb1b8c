"""`measure --what sensitivity` and `--what calibration`: what helps to choose before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from penjing.cli._show import emit, number, progress, size, table
from penjing.cli._values import PYTHON_DOCS, corpus, settings
from penjing.errors import PenjingError

#: what `--what` may be, alone
KINDS: Final = ("sensitivity", "calibration")
_HELD_OUT = 4  # windows, where --windows does not say


def show_sensitivity(
    model: str,
    *,
    text: str | None,
    windows: int | None,
    length: int,
    by: str,
    method: str,
    bits: Sequence[int],
    entries: Sequence[str],
    data: Sequence[str],
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure, draw, and print."""
    from penjing import api
    from penjing.measure.compare import held_out_windows
    from penjing.recipe.pictures import check_plot
    from penjing.recipe.sensitivity import draw_sensitivity, sensitivity

    if plot is not None:
        check_plot(plot)
    spec = _settings(entries)
    parent = api.open(model).checkpoint
    held_out = held_out_windows(parent, corpus(text or PYTHON_DOCS), length, windows or _HELD_OUT)
    with progress() as report:
        importances = _importances(parent, data, held_out, length, report) if data else None
        parts = sensitivity(
            parent, held_out, bits=bits, by=by, method=method, settings=spec, importances=importances, progress=report
        )
    if plot is not None:
        draw_sensitivity(parts, plot)
    shown = [asdict(part) for part in parts]
    found = {"model": parent.name, "method": method, "settings": spec, "held_out": held_out.digest}
    emit(found | {"sensitivity": shown}, as_json, lambda console: _sensitivity_table(console, shown))


def _importances(parent: Any, data: Sequence[str], held_out: Any, length: int, report: Any) -> Any:
    import tempfile

    from penjing.api import CALIBRATION_WINDOWS
    from penjing.data.text import check_disjoint
    from penjing.stages.calibrate import calibrate
    from penjing.stages.calibration_text import calibration_windows

    if len(data) > 1:
        raise PenjingError("one text calibrates", where="--data", attempt="--what calibration compares several")
    windows = calibration_windows(parent, corpus(data[0]), length=length, count=CALIBRATION_WINDOWS)
    check_disjoint(windows, held_out)
    with tempfile.TemporaryDirectory(prefix="penjing-") as folder:
        return calibrate(parent, windows, cache=Path(folder) / "importance.safetensors", progress=report)


def _sensitivity_table(console: Console, parts: Sequence[Mapping[str, Any]]) -> None:
    shown = table("part", "bits", "float16", "packed", "KL, nats", "top-1 agreement", "KL a MB saved")
    for part in parts:
        saved = (part["float_bytes"] - part["size_bytes"]) / 1e6
        shown.add_row(
            part["pattern"],
            str(part["bits"]),
            size(part["float_bytes"]),
            size(part["size_bytes"]),
            number(part["kl"]),
            f"{part['top1_agreement']:.1%}",
            number(part["kl"] / saved) if saved > 0 else "–",
        )
    console.print(shown)


def show_calibration(
    model: str,
    *,
    data: Sequence[str],
    windows: Sequence[int],
    lengths: Sequence[int],
    method: str,
    bits: int,
    entries: Sequence[str],
    layers: int,
    seed: int,
    as_json: bool,
) -> None:
    """Measure and print."""
    from penjing import api
    from penjing.recipe.calibration import calibration_effects

    if not data:
        raise PenjingError("no text to calibrate on", where="--what calibration", attempt="--data FILE [--data FILE]")
    spec = {"bits": bits, **_settings(entries)}
    parent = api.open(model).checkpoint
    with progress() as report:
        rows = calibration_effects(
            parent,
            {name: corpus(name) for name in data},
            counts=windows,
            lengths=lengths,
            method=method,
            settings=spec,
            num_layers=layers,
            seed=seed,
            progress=report,
        )
    shown = [asdict(row) for row in rows]
    found = {"model": parent.name, "method": method, "settings": spec, "layers": layers, "seed": seed}
    emit(found | {"calibration": shown}, as_json, lambda console: _calibration_table(console, shown, data))


def _calibration_table(console: Console, rows: Sequence[Mapping[str, Any]], data: Sequence[str]) -> None:
    shown = table("calibrated on", "windows", "tokens each", *(f"KL on {Path(name).name}" for name in data))
    for row in rows:
        name = " + ".join(Path(text).name for text in row["texts"])
        shown.add_row(name, str(row["windows"]), str(row["length"]), *(number(row["kl"][text]) for text in data))
    console.print(shown)


def _settings(entries: Sequence[str]) -> dict[str, Any]:
    spec, overrides = settings(entries)
    if overrides or "bits" in spec:
        raise PenjingError("all parts are tried alike", where="--set", attempt="--set group_size=64; bits: --bits 3")
    return spec
