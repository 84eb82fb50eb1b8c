"""The table as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speed.rows import Numbers, Row


def number(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}%" if unit == "%" else f"{value:.2f} {unit}" if unit != "×" else f"{value:.2f}×"


def bars(rows: Sequence[Row]) -> str:
    lines = ["| what | found | at least | aim | | |", "| --- | ---: | ---: | ---: | --- | --- |"]
    for row in rows:
        cells = [number(value, row.unit) for value in (row.value, row.least, row.aim)]
        lines.append(f"| {row.what} | {' | '.join(cells)} | {row.verdict} | {row.note} |")
    return "\n".join(lines) + "\n"


def contestants(found: Numbers, sizes: Mapping[str, int], perplexity: Mapping[str, float]) -> str:
    prompts = [key for key in next(iter(found.values())) if key.startswith("prefill_")]
    heads = ["model", "MB", "perplexity", *(f"prefill {key.split('_')[1]}" for key in prompts), "decode", "spread"]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name, numbers in found.items():
        quality = f"{perplexity[name]:.2f}" if name in perplexity else ""
        size = f"{sizes[name] / 1e6:.1f}" if name in sizes else ""
        speeds = [f"{numbers[key]:.0f}" for key in (*prompts, "decode")]
        lines.append("| " + " | ".join([name, size, quality, *speeds, f"{numbers['spread']:.0%}"]) + " |")
    return "\n".join(lines) + "\n"


def page(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    machine, limits = record["device"], record["limits"]
    missing = "".join(f"* {name} is missing: {why}\n" for name, why in record["missing"].items())
    return (
        f"# Speed beside llama.cpp and OpenVINO\n\n{machine['cpu']}, kernels {machine['isa']}, "
        f"{record['threads']} threads, medians of {record['rounds']} rounds in turns, {record['decode']} tokens "
        f"decoded. The machine reads {limits['read_gb_per_s']:.1f} GB/s and multiplies "
        f"{limits['int8_gmac_per_s']:.0f} billion int8 a second.\n\n"
        f"{bars(rows)}\n{contestants(record['found'], record['bytes'], record['perplexity'])}\n"
        f'Tokens a second; penjing\'s keys and values kept as `kv="auto"` does, as codes. Perplexity on '
        f"{record['held_out']}: penjing's is that of the file in the engine, "
        f"llama.cpp's that of its weights in float32; the parent has {record['perplexity']['parent']:.2f}. "
        f"Every file's answers were checked in this run (`scripts/speed/check.py`).\n{missing}"
    )
