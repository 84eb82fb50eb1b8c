"""Every technique that rounds, on every fifth layer of one model: bits a weight, KL, perplexity, seconds.

    python scripts/bench_techniques.py --calibration FILE --held-out FILE [-o docs/results/techniques.md]

All other layers and the embedding stay in float, so this tells techniques apart and promises nothing of whole files.
Calibrated on one text and judged on the other; what overlaps is refused. What a trial makes is thrown away.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from quality.texts import two_texts

from penjing import evidence as records
from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.data.text import Windows
from penjing.evidence import device
from penjing.measure import torch_decoder
from penjing.measure.compare import WINDOW
from penjing.measure.quality import quality
from penjing.quant import technique, uses_importance
from penjing.runtime import binding
from penjing.stages import EVIDENCE
from penjing.stages.calibrate import calibrate
from penjing.stages.calibration_text import calibration_windows
from penjing.stages.generated_text import generated_text
from penjing.stages.prepare import prepare
from penjing.stages.quantize import quantize
from penjing.tensors.statistics import Importance

Settings = Mapping[str, Any]
EVERY = 5


@dataclass(frozen=True)
class Trial:
    """A technique, what prepares the weights for it, and whether it is calibrated on what the model writes itself."""

    method: str
    spec: Settings = field(default_factory=dict)
    prepared_by: str | None = None
    prepared_with: Settings = field(default_factory=dict)
    own_text: bool = False

    @property
    def title(self) -> str:
        before = "" if self.prepared_by is None else f"`{self.prepared_by}`{_told(self.prepared_with)}, then "
        own = {key: value for key, value in self.spec.items() if key not in ("bits", "group_size")}
        return f"{before}`{self.method}`{_told(own)}" + ", calibrated on its own text" * self.own_text


def _told(settings: Settings) -> str:
    return "".join(f" {key}={value}" for key, value in settings.items())


@dataclass(frozen=True)
class Row:
    title: str
    bits_per_weight: float  # of what was rounded, scales included
    kl: float
    perplexity: float
    seconds: float  # to prepare and to quantize, without calibrating


def trials(group_size: int) -> list[Trial]:
    """At 3 and 2 bits, where techniques differ, what knows so many; then what has no bits to choose."""
    found = []
    for bits in (3, 2):
        grid = {"bits": bits, "group_size": group_size}
        found += [Trial("rtn", grid), Trial("hqq", grid), Trial("scale_search", grid), Trial("nf4", grid)]
        found += [Trial("kmeans", grid), Trial("gptq", grid), Trial("gptq", grid | {"levels": "book"})]
        found += [Trial("gptq", grid | {"levels": "book", "scale_bits": 8}), Trial("gptq", grid, own_text=True)]
        found += [Trial("scale_search", grid, "awq", grid)]
        for turned in ({}, {"residual": True}):
            found += [Trial(method, grid, "rotate", turned) for method in ("rtn", "gptq")]
            found += [Trial("gptq", grid | {"levels": "book"}, "rotate", turned)]
        found += [Trial("autoround", grid)]
        found += [Trial("gsq", grid)] if bits == 2 else []  # of 8 levels it takes more than 15 minutes
    by_group = {"group_size": group_size}
    found += [Trial("ternary", by_group), Trial("gptq", by_group | {"bits": 2, "levels": "ternary"})]
    return [*found, Trial("binary", by_group)]


class Bench:
    """`folder` keeps what several trials begin with."""

    def __init__(self, parent: Checkpoint, calibration: Windows, held_out: Windows, folder: Path) -> None:
        self.parent, self.calibration, self.held_out, self.folder = parent, calibration, held_out, folder
        self.teacher = torch_decoder.scorer(parent)
        layers = range(1, parent.architecture.num_layers, EVERY)
        prefixes = tuple(f"layers.{n}." for n in layers)
        shapes = parent.architecture.matrix_shapes()
        self.rounded = {name: shape for name, shape in shapes.items() if name.startswith(prefixes)}
        self.told = f"layers {', '.join(map(str, layers))}"

    def run(self, trial: Trial) -> Row:
        start, seconds = self._prepared(trial)
        calibration = self._own_text if trial.own_text else self.calibration
        importances = self._importances(start, calibration) if uses_importance(technique(trial.method)) else None
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            done = quantize(
                start, Path(folder) / "child", method=trial.method, importances=importances,
                calibration=calibration,
                overrides=[
                    (name, dict(trial.spec) if name in self.rounded else {"bits": 16})
                    for name in start.architecture.matrix_shapes()
                ],
            )  # fmt: skip
            child = open_checkpoint(Path(folder) / "child")
            found = quality(torch_decoder.scorer(child), self.held_out, parent=self.teacher)
        weights = sum(rows * cols for rows, cols in self.rounded.values())
        stored = sum(child.quantized[name].nbytes for name in self.rounded)
        assert found.kl_to_parent is not None
        return Row(trial.title, 8 * stored / weights, found.kl_to_parent, found.perplexity, seconds + done.seconds)

    def _prepared(self, trial: Trial) -> tuple[Checkpoint, float]:
        """What the trial rounds, and the seconds that it took to make."""
        if trial.prepared_by is None:
            return self.parent, 0.0
        out = self.folder / "-".join([trial.prepared_by, *map(str, trial.prepared_with.values())])
        if not out.exists():
            importances = self._importances(self.parent, self.calibration)
            work = {"importances": importances, "calibration": self.calibration}
            prepare(self.parent, out, method=trial.prepared_by, spec=trial.prepared_with, **work)
        return open_checkpoint(out), float(records.read(out / EVIDENCE)[-1]["seconds"])

    def _importances(self, model: Checkpoint, calibration: Windows) -> dict[str, Importance]:
        cache = self.folder / f"{model.digest[:12]}-{calibration.digest[:12]}.safetensors"
        return calibrate(model, calibration, cache=cache)

    @cached_property
    def _own_text(self) -> Windows:
        count, length = self.calibration.tokens_WT.shape
        written = generated_text(self.parent, num_tokens=count * (length + 1))
        return calibration_windows(self.parent, written, length=length, count=count)


def table(rows: Sequence[Row], parent_perplexity: float) -> str:
    lines = ["| bits a weight | technique | KL, nats | perplexity | seconds |", "| ---: | --- | ---: | ---: | ---: |"]
    lines += [
        f"| {row.bits_per_weight:.2f} | {row.title} | {row.kl:.4f} | {row.perplexity / parent_perplexity - 1:+.1%} "
        f"| {row.seconds:.1f} |"
        for row in sorted(rows, key=lambda row: (-row.bits_per_weight, row.kl))
    ]
    return "\n".join(lines) + "\n"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="the parent")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=4, help=f"held-out windows of {WINDOW} tokens")
    parser.add_argument("--calibration-windows", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("-o", "--out", type=Path, help="Markdown; JSON goes beside it")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    asked = arguments().parse_args(words)
    parent = open_checkpoint(asked.model)
    calibration, held_out = two_texts(
        parent, asked.calibration, asked.calibration_windows, asked.held_out, asked.windows
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(parent, calibration, held_out, Path(folder))
        before = quality(bench.teacher, held_out).perplexity
        for trial in trials(asked.group_size):
            rows.append(bench.run(trial))
            print(rows[-1], file=sys.stderr, flush=True)
            if asked.out is not None:  # what takes long is kept as it comes
                write(asked.out, words, rows, before, bench)
    print(table(rows, before))


def write(out: Path, words: Sequence[str], rows: Sequence[Row], before: float, bench: Bench) -> None:
    machine = device(binding.isa())
    command = f"python scripts/bench_techniques.py {' '.join(words)}"
    texts = (
        f"{bench.parent.name}, {bench.told} rounded, all else in float; calibrated on "
        f"{len(bench.calibration.tokens_WT)} windows of {WINDOW} tokens, judged on {len(bench.held_out.tokens_WT)}, "
        f"on which the parent's perplexity is {before:.2f}."
    )
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    made = f"`{command}`, {machine['cpu']}, {machine['cores']} cores, {versions}."
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f"# Techniques side by side\n\n{texts}\n\n{made}\n\n{table(rows, before)}", encoding="utf-8")
    record = {"command": command, "device": machine, "parent_perplexity": before, "rows": [asdict(row) for row in rows]}
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
