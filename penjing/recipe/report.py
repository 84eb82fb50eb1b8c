"""A run as one HTML file that needs nothing else: every number is read from evidence or from the packed file.

Names and settings come from files that anybody may have written: all text is escaped, and nothing in the page runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from penjing.errors import PenjingError
from penjing.evidence import read
from penjing.files import write_file
from penjing.format.architecture import LAYER_MATRICES
from penjing.format.container import open_container
from penjing.format.pack import Layout
from penjing.recipe.plots import Bar, Point, bars, scatter

Record = Mapping[str, Any]
EVIDENCE = "evidence.jsonl"


@dataclass(frozen=True)
class Measure:
    """A row of the summary: where its number is in `measure --json`, and how it is written."""

    name: str
    keys: tuple[str, ...]
    style: str
    lower_is_better: bool | None = None


SUMMARY = (
    Measure("File", ("bytes",), "bytes"),
    Measure("Bits per weight, everything counted", ("bits_per_weight",), "2"),
    Measure("Perplexity, held out", ("quality", "perplexity"), "3"),
    Measure("Bits per byte, held out", ("quality", "bits_per_byte"), "4"),
    Measure("KL divergence to the parent, nats a token", ("quality", "kl_to_parent"), "4"),
    Measure("Same first choice as the parent", ("quality", "top1_agreement"), "percent"),
    Measure("Prefill, tokens/s", ("speed", "prefill_tokens_per_s"), "0"),
    Measure("Decode, tokens/s", ("speed", "decode_tokens_per_s"), "0"),
    Measure("Decode, share of the memory's limit", ("speed", "decode_limit_fraction"), "percent"),
    Measure("First token in a new process, s", ("speed", "first_token_s"), "2"),
    Measure("Peak memory", ("memory", "peak_rss_bytes"), "bytes"),
    Measure("Peak memory beyond the file", ("memory", "over_file_bytes"), "bytes"),
)


@dataclass(frozen=True)
class Packed:
    """What a report shows of a `.penjing` file."""

    name: str
    bytes_by_part: Mapping[str, int]
    layouts: Mapping[str, Layout]
    num_layers: int
    evidence: Sequence[Record]


def report(source: Path, out: Path) -> None:
    """Write the report of a run folder (with `evidence.jsonl`) or of a `.penjing` file.

    Raises PenjingError where there is neither evidence nor a packed model.
    """
    packed = _packed(source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records: Sequence[Record] = read(source / EVIDENCE) if source.is_dir() else packed.evidence if packed else []
    if not records and packed is None:
        raise PenjingError(
            "there is no evidence to report",
            where=str(source),
            attempt=f"a run's folder with {EVIDENCE}, or a .penjing",
        )
    title = packed.name if packed else source.resolve().name
    write_file(out, page(title, records, packed, [str(entry.message) for entry in caught]).encode("utf-8", "replace"))


def _packed(source: Path) -> Packed | None:
    """The packed model itself, or the newest one in a run's folder."""
    if source.is_dir():
        found = sorted(source.glob("*.penjing"), key=lambda path: (path.stat().st_mtime, path.name))
        if not found:
            return None
        source = found[-1]
    with open_container(source) as container:
        return Packed(
            name=source.stem,
            bytes_by_part=container.bytes_by_part(),
            layouts=container.layouts,
            num_layers=container.architecture.num_layers,
            evidence=container.evidence,
        )


def page(title: str, records: Sequence[Record], packed: Packed | None, notes: Sequence[str] = ()) -> str:
    """The whole page. Sections without data are left out."""
    before, after = before_and_after(records)
    sections = [
        _summary(before, after),
        _plots(records, before, after),
        _bytes(packed) if packed else "",
        _bits(packed) if packed else "",
        _table_of_evidence(records, notes),
        _device(records),
    ]
    style = resources.files("penjing.recipe").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title)} · penjing</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{_text(title)}</h1>\n<p class="lead">{_lead(before, after)}</p>\n'
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def before_and_after(records: Sequence[Record]) -> tuple[Record, Record]:
    """The first of the fullest measurements of a parent, and the last of a result, of work that finished."""
    done = [record for record in records if not record.get("failed")]
    befores = [found for record in done if _num_measured(found := _dict(record.get("before")))]
    afters = [found for record in done if _num_measured(found := _dict(record.get("after")))]
    after = afters[-1] if afters else {}
    fullest = max(befores, key=_num_measured, default=afters[0] if len(afters) > 1 else {})
    return fullest, after


def number(record: Record, *keys: str) -> float | None:
    """A number deep in a record, or None: evidence of other versions and failures has gaps."""
    value: Any = record
    for key in keys:
        value = _dict(value).get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _num_measured(found: Record) -> int:
    return sum(number(found, *measure.keys) is not None for measure in SUMMARY)


def _dict(value: Any) -> Record:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return escape(str(value), quote=True)


def written(value: float, style: str) -> str:
    """A number as a person reads it: bytes in units of 1000, fractions in percent, else so many decimals."""
    if style == "percent":
        return f"{100 * value:.1f} %"
    if style == "bytes":
        for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if abs(value) >= size:
                return f"{value / size:.1f} {unit}"
        return f"{value:.0f} B"
    return f"{value:,.{int(style)}f}"


def _lead(before: Record, after: Record) -> str:
    sizes, losses = (
        [number(state, *keys) for state in (before, after)] for keys in (("bytes",), ("quality", "perplexity"))
    )
    parts = []
    if all(sizes):
        parts.append(f"{written(sizes[0] or 0, 'bytes')} became {written(sizes[1] or 0, 'bytes')}")
    if all(losses):
        parts.append(f"perplexity {losses[0]:.2f} became {losses[1]:.2f}")
    return "; ".join(parts) + "." if parts else "What was measured, and how."


def _summary(before: Record, after: Record) -> str:
    rows = []
    for measure in SUMMARY:
        old, new = number(before, *measure.keys), number(after, *measure.keys)
        if old is None and new is None:
            continue
        change = (
            f"{100 * (new / old - 1):+.1f} %".replace("-", "−")
            if old and new is not None and measure.style != "percent"
            else ""
        )
        cells = ["" if value is None else written(value, measure.style) for value in (old, new)]
        rows.append(
            f'<tr><th scope="row">{measure.name}</th><td class="n">{cells[0]}</td>'
            f'<td class="n after">{cells[1]}</td><td class="n muted">{change}</td></tr>'
        )
    if not rows:
        return ""
    return _section("Before and after", _table([("", ""), ("before", "n"), ("after", "n"), ("change", "n")], rows))


def _plots(records: Sequence[Record], before: Record, after: Record) -> str:
    figures = [_quality_plot(records, after), *_state_plots(before, after)]
    shown = "\n".join(figure for figure in figures if figure)
    return _section("Quality, speed, memory", shown) if shown else ""


def _quality_plot(records: Sequence[Record], after: Record) -> str:
    """Every model whose size and perplexity are in evidence, once."""
    points: dict[tuple[float, float], Point] = {}
    for record in records:
        for when in ("before", "after"):
            state = _dict(record.get(when))
            size, value = number(state, "bytes"), number(state, "quality", "perplexity")
            if size and value:
                label = str(state.get("model") or f"{when} {record.get('stage', '')}")
                points[size, value] = Point(_short(label), size, value, shipped=state == after)
    if len(points) < 2:
        return ""
    title = "Perplexity against file size"
    return _figure(title, scatter(list(points.values()), title=title, unit="perplexity, lower is better"))


def _state_plots(before: Record, after: Record) -> Iterable[str]:
    speeds = {"prefill": "Prefill, tokens/s", "decode": "Decode, tokens/s"}
    for kind, title in speeds.items():
        entries = []
        for name, state in (("before", before), ("after", after)):
            speed = _dict(state.get("speed"))
            for found in (speed, _dict(speed.get("one_thread"))):
                rate, threads = number(found, f"{kind}_tokens_per_s"), number(found, "threads")
                if rate:
                    label = f"{name}, {threads or 0:.0f} thread{'' if threads == 1 else 's'}"
                    entries.append(
                        Bar(label, (rate,), written(rate, "0"), number(found, "spread") or 0.0, state is after)
                    )
        if entries:
            yield _figure(title, bars(entries, title=title, unit="tokens/s; whiskers: interquartile range"))
    entries = []
    for name, state in (("before", before), ("after", after)):
        peak, over = number(state, "memory", "peak_rss_bytes"), number(state, "memory", "over_file_bytes")
        if peak and over is not None:
            values = (max(0.0, peak - over) / 1e6, max(0.0, over) / 1e6)
            entries.append(Bar(name, values, written(peak, "bytes"), shipped=state is after))
    if entries:
        title = "Peak memory of a fresh process"
        yield _figure(title, bars(entries, title=title, unit="MB: the mapped file, and what is beyond it"))


def _bytes(packed: Packed) -> str:
    total = sum(packed.bytes_by_part.values())
    rows = [
        f'<tr><th scope="row">{_text(part)}</th><td class="n">{written(size, "bytes")}</td>'
        f'<td class="n muted">{100 * size / total:.1f} %</td>'
        f'<td class="track"><span class="bar" style="width:{100 * size / total:.2f}%"></span></td></tr>'
        for part, size in packed.bytes_by_part.items()
        if size
    ]
    rows.append(
        f'<tr><th scope="row">all</th><td class="n after">{written(total, "bytes")}</td><td></td><td></td></tr>'
    )
    return _section("Every byte of the file", _table([("part", ""), ("size", "n"), ("share", "n"), ("", "")], rows))


def _bits(packed: Packed) -> str:
    """Bits of every matrix: parts down, layers across; the group size where there are several."""
    groups = {layout.group_size for layout in packed.layouts.values() if layout.kind == "codes"}
    several = len(groups) > 1
    header = "".join(f'<th scope="col">{n}</th>' for n in range(packed.num_layers))
    rows = []
    for part in LAYER_MATRICES:
        cells = [_cell(packed.layouts.get(f"layers.{n}.{part}"), several) for n in range(packed.num_layers)]
        if any(cells):
            rows.append(f'<tr><th scope="row">{part}</th>{"".join(cell or "<td></td>" for cell in cells)}</tr>')
    head = f"<thead><tr><th></th>{header}</tr></thead>"
    table = f'<div class="scroll"><table class="grid">{head}<tbody>{"".join(rows)}</tbody></table></div>'
    outside = "".join(
        f"<dt>{name}</dt><dd>{_text(packed.layouts[name].described)}</dd>"
        for name in ("embed", "head")
        if name in packed.layouts
    )
    size = (
        f"groups of {next(iter(groups))}"
        if len(groups) == 1
        else "the size of its groups below"
        if several
        else "as floats"
    )
    note = f'<p class="note">Bits of each weight by layer, {size}.</p>'
    return _section("Bits by part", f"{table}{note}<dl>{outside}</dl>")


def _cell(layout: Layout | None, with_group: bool) -> str:
    if layout is None:
        return ""
    bits: float = layout.bits if layout.kind == "codes" else int(layout.kind.removeprefix("b").removeprefix("f"))
    if layout.levels == "ternary":
        bits = 1.6
    group = f"<small>{layout.group_size}</small>" if with_group and layout.kind == "codes" else ""
    return f'<td style="--bits:{min(bits, 8)}" title="{_text(layout.described)}">{bits}{group}</td>'


def _table_of_evidence(records: Sequence[Record], notes: Sequence[str]) -> str:
    rows = []
    for record in records:
        if record.get("failed"):
            outcome = f'<span class="failed">failed: {_text(record["failed"])}</span>'
        else:
            outcome = " → ".join(_digest(record.get(key)) for key in ("parent", "child") if record.get(key)) or "done"
        seconds, peak = number(record, "seconds"), number(record, "peak_rss_bytes")
        rows.append(
            f'<tr><th scope="row">{_text(record.get("stage", ""))}</th>'
            f'<td class="wrap">{_settings(_dict(record.get("settings")))}</td>'
            f'<td class="n">{"" if seconds is None else written(seconds, "1")}</td>'
            f'<td class="n">{"" if not peak else written(peak, "bytes")}</td>'
            f'<td class="wrap">{outcome}{_corpus(record)}</td>'
            f'<td class="n muted">{_text(str(record.get("time", ""))[:16].replace("T", " "))}</td></tr>'
        )
    if not rows:
        return ""
    heads = [
        ("stage", ""),
        ("settings", ""),
        ("seconds", "n"),
        ("peak memory", "n"),
        ("outcome", ""),
        ("when, UTC", "n"),
    ]
    skipped = "".join(f'<p class="note failed">{_text(note)}</p>' for note in notes)
    return _section("All evidence", _table(heads, rows) + skipped)


def _corpus(record: Record) -> str:
    return f" on text {_digest(record['corpus'])}" if record.get("corpus") else ""


def _settings(settings: Record) -> str:
    return "<br>".join(f"{_text(key)} = {_text(_short(str(value), 200))}" for key, value in settings.items())


def _digest(value: Any) -> str:
    return f'<code title="{_text(value)}">{_text(str(value)[:12])}</code>'


def _short(text: str, length: int = 28) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _device(records: Sequence[Record]) -> str:
    """Where the last work ran, and with what; a run that moved says so."""
    devices = [_dict(record.get("device")) for record in records if record.get("device")]
    if not devices:
        return ""
    device = dict(devices[-1])
    memory = number(device, "memory_bytes")
    if memory:
        device["memory_bytes"] = written(memory, "bytes")
    versions = _dict(next((record["versions"] for record in reversed(records) if record.get("versions")), {}))
    entries = [(str(key).replace("_bytes", ""), value) for key, value in device.items()]
    entries.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    listed = "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in entries if value)
    moved = len({str(sorted(entry.items(), key=str)) for entry in devices}) > 1
    note = '<p class="note">Earlier evidence of this run is from other devices.</p>' if moved else ""
    return _section("Device", f"<dl>{listed}</dl>{note}")


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>"


def _table(heads: Sequence[tuple[str, str]], rows: Sequence[str]) -> str:
    header = "".join(f'<th scope="col"{f" class={kind!r}" if kind else ""}>{name}</th>' for name, kind in heads)
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _figure(title: str, svg: str) -> str:
    return f'<figure role="group" aria-label="{_text(title)}"><figcaption>{title}</figcaption>\n{svg}</figure>'
