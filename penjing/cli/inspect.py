"""inspect: what a model is, byte by byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from penjing.cli._bytes import bytes_by_part
from penjing.cli._show import emit, number, pairs, size, table
from penjing.cli._values import Json, Model

if TYPE_CHECKING:
    from penjing.checkpoint import Checkpoint

_MAX_SETTINGS = 12  # of a record, in the table
PANEL = "Look"


def command(model: Model, as_json: Json = False) -> None:
    """Family, shapes, bytes by part, bits per weight, licence, provenance, evidence so far."""
    from penjing.checkpoint import open_checkpoint

    found = describe(open_checkpoint(model))
    emit(found, as_json, lambda console: _show(console, found))


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `inspect --json` prints. The values of "bytes_by_part" sum to "bytes"."""
    import dataclasses

    from penjing.measure.compare import describe as sizes
    from penjing.measure.compare import num_weights

    provenance, evidence = history(checkpoint)
    return sizes(checkpoint) | {
        "weights": num_weights(checkpoint.architecture),
        "path": str(checkpoint.path),
        "architecture": dataclasses.asdict(checkpoint.architecture),
        "bytes_by_part": bytes_by_part(checkpoint),
        "layouts": _layouts(checkpoint),
        "licence": (provenance.get("base") or {}).get("licence"),
        "provenance": provenance,
        "evidence": evidence,
    }


def history(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Where a model came from, and the records of the stages so far."""
    from penjing.evidence import read
    from penjing.stages import EVIDENCE, base

    if checkpoint.path.suffix == ".penjing":
        from penjing.format.container import open_container

        with open_container(checkpoint.path) as container:
            return container.provenance, container.evidence
    records = read(checkpoint.path / EVIDENCE) if checkpoint.path.is_dir() else []
    return {"name": checkpoint.name, "base": base(checkpoint)}, records


def _layouts(checkpoint: Checkpoint) -> dict[str, int]:
    """How many matrices are stored in which way."""
    found: dict[str, int] = {}
    for layout in checkpoint.quantized.values():
        found[layout.described] = found.get(layout.described, 0) + 1
    rest = len(checkpoint.architecture.matrix_shapes()) - sum(found.values())
    kind = "types of GGUF" if checkpoint.path.suffix == ".gguf" else "float"
    return dict(sorted(found.items())) | ({kind: rest} if rest else {})


def _show(console: Console, found: dict[str, Any]) -> None:
    arch = found["architecture"]
    base = found["provenance"].get("base") or {}
    shape = f"{arch['num_layers']} layers, hidden {arch['hidden_size']}, mlp {arch['intermediate_size']}"
    heads = f"{arch['num_heads']} heads of {arch['head_dim']}, {arch['num_kv_heads']} of keys and values"
    vocabulary = f"{arch['vocab_size']:,} tokens, head {'tied to the embedding' if arch['tied'] else 'of its own'}"
    rows = [
        ("model", f"{found['model']} ({arch['model_type']})"),
        ("shape", f"{shape}\n{heads}"),
        ("vocabulary", vocabulary),
        ("context", f"{arch['max_position_embeddings']:,} tokens"),
        ("weights", f"{found['weights']:,}"),
        ("matrices", "\n".join(f"{count} in {name}" for name, count in found["layouts"].items())),
        ("licence", found["licence"] or "not stated in the file"),
        ("from", f"{base['name']}, sha256 {base['digest'][:16]}…" if base else "not stated in the file"),
    ]
    console.print(pairs(rows))
    parts = table("part", "bytes", "share", "bits/weight")
    for name, num_bytes in found["bytes_by_part"].items():
        if num_bytes:
            parts.add_row(name, f"{num_bytes:,}", f"{num_bytes / found['bytes']:.1%}", "")
    bits = number(found["bits_per_weight"], 4)
    parts.add_row("file", f"{found['bytes']:,}", "100.0%", bits, style="bold")
    console.print("", parts, sep="\n")
    if found["evidence"]:
        records = table("evidence", "<settings>", "seconds", "peak memory")
        for record in found["evidence"]:
            outcome = f"failed: {record['failed']}" if record.get("failed") else _settings(record["settings"])
            records.add_row(record["stage"], outcome, number(record["seconds"]), size(record["peak_rss_bytes"]))
        console.print("", records, sep="\n")


def _settings(settings: dict[str, Any]) -> str:
    """As they are typed: `method=rtn bits=4 embed:bits=8`."""
    said = []
    for key, value in settings.items():
        if key == "spec":
            said += [f"{name}={entry}" for name, entry in value.items()]
        elif key == "overrides":
            said += [f"{pattern}:{name}={entry}" for pattern, changes in value for name, entry in changes.items()]
        else:
            said.append(f"{key}={value}")
    hidden = len(said) - _MAX_SETTINGS
    return " ".join(said[:_MAX_SETTINGS]) + (f" … and {hidden} more (--json has all)" if hidden > 0 else "")
