"""The files that the table compares, made once in a folder and kept: the packaged SmolLM2-135M as everybody ships it.

llama.cpp's types are written by llama.cpp's own quantizer, OpenVINO's folder by optimum-intel, ours by `fit` at rising
sizes until one is as good as each of llama.cpp's. A peer that cannot be had is left out with its reason.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.data.text import Windows
from penjing.measure import torch_decoder
from penjing.measure.engine_model import EngineScorer
from penjing.measure.quality import quality
from penjing.recipe.fit import Limits, make_within
from penjing.recipe.options import options
from penjing.runtime.session import Session
from penjing.stages.calibrate import calibrate

PEERS = Path(__file__).resolve().parents[1] / "peers"
KINDS = ("Q4_0", "Q4_K_M", "Q8_0")
PARENT = "smollm2-135m"
EIGHT_BITS = "8 bits"
GROUP = 64
Say = Callable[[str], None]


@dataclass
class Files:
    """name: path, by who runs it; `missing`: what could not be made, and why; `perplexity` of whatever was judged."""

    ggufs: dict[str, Path] = field(default_factory=dict)
    openvino: Path | None = None
    ours: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    perplexity: dict[str, float] = field(default_factory=dict)


def run(command: Sequence[str | Path]) -> None:
    """Raises RuntimeError with the last line that the command said."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(str(error)) from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()
        raise RuntimeError(said[-1][:200])


def make_ggufs(files: Files, parent: Checkpoint, folder: Path, python: Path) -> None:
    for kind in KINDS:
        name, path = f"llama.cpp {kind}", folder / f"{kind}.gguf"
        try:
            if not path.exists():
                _quantize(python, parent.path, path, kind)
            files.ggufs[name] = path
        except RuntimeError as error:
            files.missing[name] = str(error)


def _quantize(python: Path, source: Path, path: Path, kind: str) -> None:
    """By llama.cpp; where that cannot be had, by the gguf package, which rounds to nearest too but knows no Q4_K_M."""
    draft = path.with_suffix(".partial")
    try:
        run([python, PEERS / "gguf_quantize.py", source, draft, kind])
    except RuntimeError as error:
        if kind == "Q4_K_M":
            raise RuntimeError(f"llama-cpp-python: {error}") from error
        run([sys.executable, PEERS / "gguf_copy.py", source, draft, kind])
    draft.rename(path)


def make_openvino(files: Files, folder: Path, python: Path, eight_bits: Path) -> None:
    """From the folder of our 8-bit weights: the packaged GGUF file is none that optimum-intel reads."""
    path = folder / "openvino-int8"
    export = [python.with_name("optimum-cli"), "export", "openvino", "-m", eight_bits]
    try:
        if not (path / "openvino_model.xml").exists():
            run([*export, "--task", "text-generation-with-past", "--weight-format", "int8", path])
        files.openvino = path
    except RuntimeError as error:
        files.missing["OpenVINO int8"] = str(error)


def make_eight_bits(files: Files, parent: Checkpoint, folder: Path) -> Path:
    """Body and head of 8 bits, packed; the folder it was packed from."""
    quantized, packed = folder / "8bit", folder / "8bit.penjing"
    if not packed.exists():
        program = [sys.executable, "-c", "from penjing.cli import main; main()"]
        settings = ["--set", "bits=8", "--set", f"group_size={GROUP}"]
        run([*program, "quantize", parent.path, quantized, "--force", *settings])
        run([*program, "pack", quantized, packed, "--force"])
    files.ours[EIGHT_BITS] = packed
    return quantized


def judge(files: Files, parent: Checkpoint, held_out: Windows, say: Say) -> None:
    """Perplexity of the parent and of llama.cpp's files, their weights in float32: kind to a peer."""
    judged = {"parent": parent} | {name: open_checkpoint(path) for name, path in files.ggufs.items()}
    for name, checkpoint in judged.items():
        files.perplexity[name] = quality(torch_decoder.scorer(checkpoint), held_out).perplexity
        say(f"perplexity of {name}: {files.perplexity[name]:.3f}")


def judge_packed(path: Path, held_out: Windows) -> float:
    """Of the very file in the engine, activations of 8 bits and all."""
    with Session(path, context=held_out.tokens_WT.shape[1], kv="auto") as session:
        return quality(EngineScorer(session), held_out).perplexity


def make_as_good(
    files: Files,
    parent: Checkpoint,
    folder: Path,
    calibration: Windows,
    held_out: Windows,
    sizes: Sequence[int],
    say: Say,
) -> dict[str, str]:
    """llama.cpp's types to the names of our smallest files whose perplexity is no worse, where there is one.

    Where none of `sizes` is, that of 8 bits.
    """
    wanted = {name: files.perplexity[name] for name in ("llama.cpp Q4_0", "llama.cpp Q4_K_M") if name in files.ggufs}
    importances: Any = None
    found: dict[str, str] = {}
    for size in sizes:
        if not wanted:
            break
        name, path = f"{size / 1e6:.0f} MB", folder / f"fit-{size}-{calibration.digest[:12]}.penjing"
        if not path.exists():
            if importances is None:
                importances = calibrate(parent, calibration, cache=folder / "importance.safetensors")
                possible = options(parent, importances)
            run_folder, draft = folder / "run", folder / "draft.penjing"
            run_folder.mkdir(exist_ok=True)
            make_within(parent, run_folder, draft, possible, importances, calibration, Limits(max_bytes=size), 0, None)
            draft.rename(path)
        files.ours[name], files.perplexity[name] = path, judge_packed(path, held_out)
        say(f"perplexity of penjing {name}: {files.perplexity[name]:.3f}")
        for peer in [peer for peer, most in wanted.items() if files.perplexity[name] <= most]:
            found[peer] = name
            del wanted[peer]
    eight_bits = files.perplexity.get(EIGHT_BITS, math.inf)
    return found | {peer: EIGHT_BITS for peer, most in wanted.items() if eight_bits <= most}
