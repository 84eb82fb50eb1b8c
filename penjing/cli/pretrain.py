"""pretrain: a small model from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from penjing.cli._show import emit, number, pairs, progress, size
from penjing.cli._values import Force, Json, Seed, size_bytes

PANEL = "Make it small"
RESUME = "run the same command again; it goes on from the last saved step"


def command(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A text, a folder of texts, or data with a text.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.", show_default=False)],
    held_out: Annotated[
        str | None,
        typer.Option("--held-out", metavar="DATA", help="To judge it by; else a tenth of DATA.", show_default=False),
    ] = None,
    num_parameters: Annotated[str, typer.Option("--size", help="Parameters, e.g. 1M.")] = "1M",
    family: Annotated[
        str,
        typer.Option("--family", help="Decoders: llama, mistral, qwen2, qwen3, olmo2, gpt_neox; an encoder: bert."),
    ] = "llama",
    vocab_size: Annotated[int, typer.Option("--vocab", min=2, help="Tokens of the new tokenizer.")] = 1024,
    context: Annotated[int, typer.Option("--context", min=8, help="Tokens of a window.")] = 256,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Windows a step.")] = 8,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the optimizer.")] = 1500,
    learning_rate: Annotated[float, typer.Option("--lr", help="Highest learning rate.")] = 3e-3,
    dropout: Annotated[float, typer.Option("--dropout", min=0.0, max=0.9, help="While training.")] = 0.0,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Stop by time, too; then seeds give no same bytes.")
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, f32 or bf16.")] = "auto",
    kind: Annotated[str | None, typer.Option("--kind", help="text: take it as text.", show_default=False)] = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a tokenizer and a small model on a text, and say how good it is on held-out text."""
    from penjing.data.dataset import open_dataset
    from penjing.stages.pretrain import Plan, pretrain

    settings: dict[str, Any] = {"rows": rows, "steps": steps, "learning_rate": learning_rate, "dropout": dropout}
    settings |= {"minutes": minutes, "precision": precision, "seed": seed, "context": context}
    plan = Plan(family=family, num_parameters=size_bytes(num_parameters), vocab_size=vocab_size, **settings)
    with progress() as report:
        judged_by = open_dataset(held_out, kind=kind) if held_out else None
        dataset = open_dataset(data, kind=kind)
        evidence = pretrain(dataset, out, plan, held_out=judged_by, force=force, progress=report)
    found = {"out": str(out)} | evidence.to_json()
    emit(found, as_json, lambda console: _show(console, found))


def _show(console: Console, found: dict[str, Any]) -> None:
    after = found["after"]
    rows = [("wrote", f"{found['out']}: {found['settings']['family']}, {after['parameters']:,} parameters")]
    if "bits_per_character" in after:
        held_out = f"{number(after['bits_per_character'], 4)} on {after['characters']:,} held-out characters"
        rows.append(("bits per character", held_out))
    else:
        rows.append(("masked tokens", f"{after['masked_accuracy']:.1%} right, held out"))
        rows.append(("what follows", f"{after['order_accuracy']:.1%} right, held out"))
    steps = f"{after['steps']:,} steps, {after['tokens']:,} tokens, best after {after['best_step']:,}"
    rows.append(("trained", f"{steps}; {after['precision']}"))
    rows.append(("took", f"{number(found['seconds'])} s, {size(found['peak_rss_bytes'])} of memory at most"))
    console.print(pairs(rows))
