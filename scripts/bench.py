"""penjing and its peers on the same model, in turns, in one run on one machine: the table of speeds, Markdown and JSON.

    python scripts/bench.py --calibration TEXT --held-out TEXT -o docs/results/speed.md

Peers run in environments of their own (`make bench` sets them up). Which file of ours stands beside which of
llama.cpp's is chosen by measuring perplexity. No speed is printed of a file whose answers were not checked in the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from quality.texts import read_texts
from speed.check import TEXT, check_packed, check_said
from speed.contest import HERE, PEERS, Round, contest, process
from speed.models import (
    EIGHT_BITS,
    PARENT,
    Files,
    judge,
    judge_packed,
    make_as_good,
    make_eight_bits,
    make_ggufs,
    make_openvino,
)
from speed.page import page
from speed.rows import rows

from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.data import python_docs
from penjing.data.text import Windows, check_disjoint, split
from penjing.evidence import device
from penjing.measure import fresh
from penjing.measure.compare import WINDOW, held_out_windows
from penjing.measure.memory import measure_memory
from penjing.measure.probe import probe
from penjing.recipe.fit import CALIBRATION_WINDOWS
from penjing.runtime import binding


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def texts(asked: argparse.Namespace, parent: Checkpoint) -> tuple[Windows, Windows]:
    """Calibration and held-out windows: of the texts given where they are there, else of Python's documentation."""
    if asked.calibration and asked.calibration.exists() and asked.held_out.exists():
        corpora = read_texts(asked.calibration), read_texts(asked.held_out)
    else:
        asked.held_out = Path("python-docs")
        corpora = split(python_docs.corpus())
    calibration = held_out_windows(parent, corpora[0], WINDOW, asked.calibration_windows)
    held_out = held_out_windows(parent, corpora[1], WINDOW, asked.windows)
    check_disjoint(calibration, held_out)
    return calibration, held_out


def contestants(files: Files, asked: argparse.Namespace, together: str) -> dict[str, Round]:
    """Peers and ours, alternating sides as far as there are as many. `together`: who shows what 8 sequences gain."""
    common = ["--threads", str(asked.threads), "--prompts", asked.prompts, "--decode", str(asked.decode)]
    found = {
        name: process([asked.llamacpp_python, PEERS / "llamacpp.py", path, *common, "--say", TEXT])
        for name, path in files.ggufs.items()
    }
    if files.openvino:
        command = [asked.openvino_python, PEERS / "openvino_llm.py", files.openvino, *common, "--say", TEXT]
        found["OpenVINO int8"] = process(command)
    for name, path in files.ours.items():
        sequences = ["--sequences", "8" if name == together else "1"]
        found[f"penjing {name}"] = process([sys.executable, HERE / "engine.py", path, *common, *sequences])
    return found


def check_answers(files: Files, found: dict[str, dict[str, Any]], eight_bits: Path) -> None:
    for name, path in files.ggufs.items():
        check_said(name, found[name].pop("said"), open_checkpoint(path))
    if files.openvino:
        check_said("OpenVINO int8", found["OpenVINO int8"].pop("said"), open_checkpoint(eight_bits))


def fresh_numbers(path: Path, wheel: Path | None) -> dict[str, Any]:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        fresh.run("first-token", str(path))
        times.append(time.perf_counter() - start)
    built = wheel if wheel and wheel.is_file() else None
    return {
        "over_file_mb": measure_memory(path, kv="auto").over_file_bytes / 1e6,
        "first_token_s": statistics.median(times),
        "wheel_mb": built.stat().st_size / 1e6 if built else None,
        "wheel_note": built.name if built else "make wheel first",
    }


def make(asked: argparse.Namespace, files: Files) -> tuple[dict[str, str], Path]:
    """All files, judged; llama.cpp's type to our file that is as good, and the folder of 8-bit weights."""
    asked.folder.mkdir(parents=True, exist_ok=True)
    parent = open_checkpoint(asked.model)
    calibration, held_out = texts(asked, parent)
    make_ggufs(files, parent, asked.folder, asked.llamacpp_python)
    eight_bits = make_eight_bits(files, parent, asked.folder)
    make_openvino(files, asked.folder, asked.openvino_python, eight_bits)
    judge(files, parent, held_out, say)
    files.perplexity[EIGHT_BITS] = judge_packed(files.ours[EIGHT_BITS], held_out)
    sizes = [int(float(size) * 1e6) for size in asked.sizes.split(",") if size]
    chosen = make_as_good(files, parent, asked.folder, calibration, held_out, sizes, say)
    files.ours = {name: path for name, path in files.ours.items() if name in {EIGHT_BITS, *chosen.values()}}
    return chosen, eight_bits


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=PARENT, help="the parent of all files")
    parser.add_argument("--calibration", type=Path, help="text files; without them: Python's documentation, split")
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--llamacpp-python", type=Path, required=True, help="has xllamacpp and llama-cpp-python")
    parser.add_argument("--openvino-python", type=Path, required=True, help="has optimum-intel and openvino-genai")
    parser.add_argument("--folder", type=Path, default=Path("build/speed"), help="where files are made and kept")
    parser.add_argument("--sizes", default="68,72,76,80,84,88,94", help="of our files, MB, rising")
    parser.add_argument("--windows", type=int, default=8, help=f"held-out windows of {WINDOW} tokens")
    parser.add_argument("--calibration-windows", type=int, default=CALIBRATION_WINDOWS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", default="512,2048")
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("-o", "--out", type=Path, help="Markdown; JSON goes beside it")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    asked = arguments().parse_args(words)
    files = Files()
    chosen, eight_bits = make(asked, files)
    best = chosen.get("llama.cpp Q4_0") or chosen.get("llama.cpp Q4_K_M") or EIGHT_BITS
    errors = {f"penjing {name}": check_packed(path) for name, path in files.ours.items()}
    found = contest(contestants(files, asked, best), asked.rounds, say)
    check_answers(files, found, eight_bits)
    ours = {name: f"penjing {name}" for name in files.ours}
    peers = [name for name in found if name not in ours.values()]
    new = fresh_numbers(files.ours[best], asked.wheel)
    table = rows(found, {peer: ours[name] for peer, name in chosen.items()}, ours[EIGHT_BITS], peers, new)
    paths = files.ggufs | {ours[name]: path for name, path in files.ours.items()}
    record = {
        "device": device(binding.isa()), "limits": probe(threads=asked.threads).to_json(), "threads": asked.threads,
        "rounds": asked.rounds, "decode": asked.decode, "held_out": f"{asked.held_out.name}, {asked.windows} windows",
        "found": found, "bytes": {name: path.stat().st_size for name, path in paths.items()},
        "perplexity": {ours.get(name, name): value for name, value in files.perplexity.items()},
        "distance_from_reference": errors, "missing": files.missing, "rows": [row.to_json() for row in table],
    }  # fmt: skip
    text = page(record, table)
    print(text)
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(text, encoding="utf-8")
        asked.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
