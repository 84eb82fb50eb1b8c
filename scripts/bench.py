"""penjing and its peers on the same model, in turns, in one run: a Markdown table and JSON.

    python scripts/bench.py MODEL.penjing [MORE.penjing …] --peer-python PYTHON [--rounds 5] [-o docs/results/speed.md]

Each round runs every contestant once in a process of its own (A B C A B C …); medians over rounds are quoted, the
ratio is to llama.cpp's Q4_0. llama.cpp runs the packaged SmolLM2-135M as it is (Q4_1) and rounded to Q4_0 and Q8_0.
PYTHON is an interpreter that has xllamacpp, so that a peer's packages stay out of penjing's environment.
A penjing row is refused where the engine's answers do not agree with themselves (`measure/speed.py`).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from penjing.checkpoint import open_checkpoint
from penjing.evidence import device
from penjing.measure.speed import speed
from penjing.runtime import binding

PEERS = Path(__file__).parent / "peers"
QUANTITIES = ("prefill_tokens_per_s", "decode_tokens_per_s")
Round = Callable[[], dict[str, float]]


def llamacpp(python: str, model: Path, threads: int) -> Round:
    command = [python, str(PEERS / "llamacpp.py"), str(model), "--threads", str(threads)]

    def run() -> dict[str, float]:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def penjing(model: Path, threads: int) -> Round:
    def run() -> dict[str, float]:
        found = speed(model, threads=threads, repeats=1).to_json()
        return {name: found[name] for name in (*QUANTITIES, "decode_limit_fraction")}

    return run


def contest(contestants: dict[str, Round], rounds: int) -> dict[str, dict[str, float]]:
    """Medians of every quantity of every contestant, and the spread of its decode speed (interquartile / median)."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for index in range(rounds):
        for name, run in contestants.items():
            samples[name].append(run())
            print(f"round {index + 1}: {name}: {samples[name][-1]}", file=sys.stderr)
    found = {}
    for name, runs in samples.items():
        found[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        low, middle, high = statistics.quantiles([run["decode_tokens_per_s"] for run in runs], n=4, method="inclusive")
        found[name]["spread"] = (high - low) / middle
    return found


def table(rows: dict[str, dict[str, float]], sizes: dict[str, int], baseline: str) -> str:
    lines = [
        "| model | MB | prefill tok/s | × | decode tok/s | × | spread | of read limit |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        prefill, decode = (row[quantity] for quantity in QUANTITIES)
        ratios = [row[quantity] / rows[baseline][quantity] for quantity in QUANTITIES]
        limit = f"{row['decode_limit_fraction']:.0%}" if "decode_limit_fraction" in row else ""
        lines.append(
            f"| {name} | {sizes[name] / 1e6:.1f} | {prefill:.0f} | {ratios[0]:.2f} "
            f"| {decode:.0f} | {ratios[1]:.2f} | {row['spread']:.0%} | {limit} |"
        )
    return "\n".join(lines) + "\n"


def peer_models(folder: Path) -> dict[str, Path]:
    packaged = open_checkpoint("smollm2-135m").path
    models = {"llama.cpp Q4_1 (packaged)": packaged}
    for kind in ("Q4_0", "Q8_0"):
        models[f"llama.cpp {kind}"] = folder / f"{kind}.gguf"
        command = [sys.executable, str(PEERS / "gguf_copy.py"), str(packaged), str(folder / f"{kind}.gguf"), kind]
        subprocess.run(command, check=True)
    return models


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--out", type=Path, help="Markdown; JSON goes beside it")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        peers = peer_models(Path(folder))
        files = peers | {f"penjing {path.stem}": path for path in options.models}
        contestants = {name: llamacpp(options.peer_python, path, options.threads) for name, path in peers.items()}
        contestants |= {f"penjing {path.stem}": penjing(path, options.threads) for path in options.models}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        rows = contest(contestants, options.rounds)
    text = table(rows, sizes, "llama.cpp Q4_0")
    print(text)
    if options.out is not None:
        machine = device(binding.isa())
        note = (
            f"SmolLM2-135M, prompt of 512, 128 tokens decoded, {options.threads} threads, medians of {options.rounds} "
            f"rounds in turns.\n{machine['cpu']}, kernels {machine['isa']}, Python {platform.python_version()}.\n"
        )
        options.out.write_text(f"# Speed beside llama.cpp\n\n{note}\n{text}", encoding="utf-8")
        record: dict[str, Any] = {"device": machine, "rows": rows, "bytes": sizes}
        options.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
