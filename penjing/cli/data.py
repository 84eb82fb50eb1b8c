"""data: what is in it, before anything is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from penjing.cli._show import emit, number, pairs, progress, table
from penjing.cli._values import Json, Seed
from penjing.errors import PenjingError

PANEL = "Look"
_MOST_CHARS = 1200  # of an example


def command(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="JSON lines, CSV, Parquet, JSON, text, or a folder of one of them.", show_default=False
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Show it as this model sees it.", show_default=False)
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", metavar="DATA", help="Held-out data; else a tenth of DATA is.", show_default=False),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="text, chat, instruction, classification, preference or pairs; else recognised.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="ROLE=NAME",
            help="A column, e.g. text=body; text=1 where there is no header; several joined by +.",
            show_default=False,
        ),
    ] = None,
    separator: Annotated[
        str | None, typer.Option("--separator", help="Between several labels in one cell.", show_default=False)
    ] = None,
    label_names: Annotated[
        Path | None,
        typer.Option("--label-names", metavar="FILE", help="Names of labels 0, 1, …, a line each.", show_default=False),
    ] = None,
    question: Annotated[str, typer.Option("--question", help="How a text to classify is asked about.")] = "{text}",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="Tokens of an example.")] = 512,
    encoding: Annotated[str, typer.Option("--encoding", help="Of text files.")] = "utf-8",
    strict: Annotated[bool, typer.Option("--strict", help="Refuse data with any problem.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Counts, lengths, examples as the model sees them, problems by line, repeats, languages, personal data."""
    from penjing.data.dataset import open_dataset
    from penjing.data.look import look

    settings: dict[str, Any] = {"kind": kind, "columns": columns(column or []), "encoding": encoding}
    settings |= {"separator": separator, "label_names": _names(label_names)}
    with progress() as report:
        report("reading", 0, 0)
        dataset = open_dataset(data, strict=strict, **settings)
        other = open_dataset(held_out, **settings) if held_out else None
        codec = _codec(model) if model else None
        options: dict[str, Any] = {"held_out": other, "max_tokens": max_tokens, "question": question, "seed": seed}
        found = look(dataset, codec, progress=report, **options)
    places = {kind: dataset.problems.places(kind) for kind in dataset.problems.counts}
    if strict:
        dataset.problems.refuse()  # what was too long is known only now
    emit(found, as_json, lambda console: _show(console, found, places))


def columns(entries: list[str]) -> dict[str, str]:
    """ROLE=NAME of each."""
    found = {}
    for entry in entries:
        role, equals, name = entry.partition("=")
        if not (role and equals and name):
            raise PenjingError(f"not a column: {entry!r}", where="--column", attempt="ROLE=NAME, e.g. text=body")
        found[role] = name
    return found


def _names(path: Path | None) -> tuple[str, ...]:
    from penjing.data.text import read_text

    return tuple(line.strip() for line in read_text(path).splitlines() if line.strip()) if path else ()


def _codec(model: str) -> Any:
    from penjing.checkpoint import open_checkpoint
    from penjing.data.encode import codec

    return codec(open_checkpoint(model))


def _show(console: Console, found: dict[str, Any], places: dict[str, str]) -> None:
    lengths = found["lengths"]
    middle = f"median {lengths['median']:,.0f}, 5% to 95%: {lengths['p5']:,.0f} to {lengths['p95']:,.0f}"
    columns_said = ", ".join(f"{role}: {' + '.join(names)}" for role, names in found["columns"].items())
    rows = [
        ("kind", f"{found['kind']} ({columns_said})"),
        ("records", f"{found['records']:,}" + (f", {found['left_out']:,} left out" if found["left_out"] else "")),
        (lengths["unit"], f"{lengths['total']:,}; {middle}, longest {lengths['longest']:,}"),
    ]
    if "targets" in lengths:
        share = lengths["targets"] / max(1, lengths["total"])
        rows.append(("learnt", f"{lengths['targets']:,} tokens, {share:.0%} of all"))
    if "labels" in found:
        by_count = sorted(found["labels"].items(), key=lambda item: -item[1])
        said = ", ".join(f"{name} {count}" for name, count in by_count[:8])
        more = f" … and {len(by_count) - 8} more, the fewest {by_count[-1][1]}" if len(by_count) > 8 else ""
        rows.append((f"{len(by_count)} labels", said + more))
    rows += [("near-duplicates", _near(found["near_duplicates"])), ("languages", _counted(found["languages"]))]
    rows += [("personal data", _counted(found["personal_data"])), ("digest", found["digest"][:16] + "…")]
    console.print(pairs(rows))
    if found["problems"]:
        problems = table("problem", "records", "<what happens>", "<where>")
        for entry in found["problems"]:
            kind = entry["problem"]
            problems.add_row(kind, str(entry["count"]), "left out" if entry["left_out"] else "kept", places[kind])
        console.print("", problems, sep="\n")
    for example in found.get("examples", ()):
        cut = f", {example['left_out']} left out" if example["left_out"] else ""
        console.print(f"\n[bold]{example['file']} line {example['line']}[/], {example['tokens']} tokens{cut}:")
        console.print(_highlighted(example["pieces"]))


def _highlighted(pieces: list[dict[str, Any]]) -> Text:
    """What is learnt is green, and between » « where there is no colour."""
    shown = Text()
    for piece in pieces:
        text = piece["text"]
        if len(text) > _MOST_CHARS:
            text = f"{text[: _MOST_CHARS // 2]} […] {text[-_MOST_CHARS // 2 :]}"
        shown.append(f"»{text}«" if piece["target"] else text, style="green" if piece["target"] else "dim")
    return shown


def _near(found: dict[str, Any]) -> str:
    if "records" not in found:
        return _counted(found)
    said = f"{found['records']:,} records ({found['share']:.1%}) nearly stand in {found['held_out']}"
    nearest = found["nearest"][:2]
    lines = [f"{n['line']} ~ {n['held_out_line']} ({number(n['similarity'], 2)})" for n in nearest]
    return said + (f": {', '.join(lines)}" if lines else "")


def _counted(found: dict[str, Any]) -> str:
    if "needs" in found:
        return f"not looked for: {found['needs']}"
    if "failed" in found:
        return f"not looked for: {found['failed']}"
    said = ", ".join(f"{name} {count}" for name, count in list(found["found"].items())[:8]) or "none found"
    return f"{said} (of {found['looked_at']:,} records)"
