"""Quality per byte: penjing's fit, uniform rounding and llama.cpp's types, one text, one code: Markdown and JSON.

    python scripts/bench_quality.py --calibration FILE --held-out FILE [-o docs/results/quality.md]

The packaged SmolLM2-135M at whole-file sizes. `fit` chooses, quantizes and packs for each size as the main job does,
calibrated on one text and judged on the other; what overlaps is refused. `rtn` and `hqq` are uniform, embedding
included: of all bits and group sizes the largest file that is no larger, its tensors' bytes counted and what the packed
file holds beside tensors added. llama.cpp's types are read from a GGUF file that the `gguf` package wrote. All
perplexities are of the dequantized weights in the same float32 torch code. With --peer-python, an interpreter that has
hqq and llmcompressor, those packages take part (`quality_peers.py`).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from quality_peers import CONTESTANTS, Peers

from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.data.text import Corpus, Windows, blocks, check_disjoint, read_corpus
from penjing.evidence import device
from penjing.format.pack import Layout
from penjing.measure import torch_decoder
from penjing.measure.compare import WINDOW, held_out_windows
from penjing.measure.quality import quality
from penjing.quant import technique
from penjing.recipe.fit import Limits, make_within
from penjing.recipe.options import options
from penjing.runtime import binding
from penjing.stages.calibrate import calibrate

COPY = Path(__file__).parent / "peers" / "gguf_copy.py"
PACKAGES = Path("build/quality-peers")  # what other packages made, used again
PARENT = "smollm2-135m"
SIZES = (76_000_000, 60_000_000, 48_000_000, 39_000_000)  # 2 bits in groups of 64 are 38.4 MB
UNIFORM = [(bits, group) for bits in (2, 3, 4, 5, 6) for group in (32, 64, 96, 192, 576)]


@dataclass(frozen=True)
class Row:
    """One model: what it is, the bytes of its file, and what `measure` says of it."""

    name: str
    size_bytes: int
    quality: dict[str, Any]
    seconds: float  # to make it
    predicted_kl: float | None = None


class Bench:
    """Contestants are made one after another, judged, and forgotten."""

    def __init__(
        self,
        parent: Checkpoint,
        calibration: Windows,
        held_out: Windows,
        folder: Path,
        report: Callable[[Sequence[Row]], None],
    ) -> None:
        """`report` is called with all rows so far, after each."""
        self.parent, self.calibration, self.held_out, self.folder = parent, calibration, held_out, folder
        self.report = report
        self.teacher = torch_decoder.scorer(parent)
        self.weights = {part.name: torch.from_numpy(parent.read_part(part)) for part in parent.parts()}
        self.rows = [Row("parent", parent.file_bytes, quality(self.teacher, held_out).to_json(), 0.0)]
        self.beside_bytes = 0  # what a packed file holds beside its matrices

    def add(self, name: str, size_bytes: int, scorer: Any, seconds: float, predicted_kl: float | None = None) -> None:
        found = quality(scorer, self.held_out, parent=self.teacher).to_json()
        self.rows.append(Row(name, size_bytes, found, seconds, predicted_kl))
        self.report(self.rows)

    def fits(self) -> None:
        importances = calibrate(self.parent, self.calibration, cache=self.folder / "importance.safetensors")
        possible = options(self.parent, importances)
        for size_bytes in SIZES:
            run, draft = self.folder / "run", self.folder / "fit.penjing"
            run.mkdir(exist_ok=True)
            with timed() as took:
                limits = Limits(max_bytes=size_bytes)
                chosen = make_within(self.parent, run, draft, possible, importances, self.calibration, limits, 0, None)
            packed = open_checkpoint(draft)
            size = packed.file_bytes
            self.beside_bytes = size - sum(option.size_bytes for option in chosen.values())
            predicted = sum(option.error for option in chosen.values())
            self.add(f"penjing fit {size_bytes / 1e6:.0f} MB", size, torch_decoder.scorer(packed), took[0], predicted)

    def uniform(self, method_name: str) -> None:
        method = technique(method_name)
        shapes = self.parent.architecture.matrix_shapes()
        for most in SIZES:
            fitting = [
                (self._size(shapes, bits, group, symmetric), bits, group, symmetric)
                for bits, group in UNIFORM
                for symmetric in (True, False)
            ]
            size, bits, group, symmetric = max(option for option in fitting if option[0] <= most)
            spec = method.Spec(bits=bits, group_size=group, symmetric=symmetric)
            with timed() as took:
                changed = {name: method.quantize(spec, self.weights[name]).dequantize() for name in shapes}
            scorer = torch_decoder.DecoderScorer(self.parent.architecture, self.weights | changed)
            kind = "symmetric" if symmetric else "asymmetric"
            self.add(f"{method_name}, {bits} bits, groups of {group}, {kind}", size, scorer, took[0])

    def _size(self, shapes: Mapping[str, tuple[int, int]], bits: int, group: int, symmetric: bool) -> int:
        layouts = [
            Layout(kind="codes", rows=rows, cols=cols, bits=bits, group_size=group, symmetric=symmetric)
            for rows, cols in shapes.values()
        ]
        return self.beside_bytes + sum(layout.nbytes for layout in layouts)

    def packages(self, python: str) -> None:
        peers = Peers(python, self.parent, self.calibration, PACKAGES)
        for peer in CONTESTANTS:
            with timed() as took:
                changed = peers.weights(peer)
            scorer = torch_decoder.DecoderScorer(self.parent.architecture, self.weights | changed)
            self.add(peer.title, self.beside_bytes + peer.size_bytes(self.parent), scorer, took[0])

    def llamacpp(self, kind: str) -> None:
        path = self.folder / f"{kind}.gguf"
        with timed() as took:
            subprocess.run([sys.executable, str(COPY), str(self.parent.path), str(path), kind], check=True)
        self.add(f"llama.cpp {kind}", path.stat().st_size, torch_decoder.scorer(open_checkpoint(path)), took[0])


@contextmanager
def timed() -> Iterator[list[float]]:
    """Seconds, when it is over."""
    took, start = [0.0], time.perf_counter()
    yield took
    took[0] = time.perf_counter() - start


def read_texts(path: Path) -> Corpus:
    """Text files, and the "text" of each line of .jsonl files; long documents cut so that a sample sees all of them."""
    lines = [line for file in sorted(path.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    documents = [json.loads(line)["text"] for line in lines]
    plain = read_corpus([path] if path.is_file() else sorted(path.glob("*.txt")))
    return Corpus((*documents, *(block for document in plain.documents for block in blocks(document))))


def table(rows: Sequence[Row]) -> str:
    base = rows[0].quality["perplexity"]
    lines = [
        "| model | MB | perplexity | over parent | KL, nats | same first choice | predicted KL |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(rows[1:], key=lambda row: -row.size_bytes):
        found = row.quality
        predicted = "" if row.predicted_kl is None else f"{row.predicted_kl:.3f}"
        lines.append(
            f"| {row.name} | {row.size_bytes / 1e6:.1f} | {found['perplexity']:.2f} "
            f"| {found['perplexity'] / base - 1:+.1%} | {found['kl_to_parent']:.3f} "
            f"| {found['top1_agreement']:.1%} | {predicted} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8, help="held-out windows of 512 tokens")
    parser.add_argument("--calibration-windows", type=int, default=12)
    parser.add_argument("--peer-python", help="an interpreter with hqq and llmcompressor")
    parser.add_argument("-o", "--out", type=Path, help="Markdown; JSON goes beside it")
    asked = parser.parse_args(arguments)
    parent = open_checkpoint(PARENT)
    calibration = held_out_windows(parent, read_texts(asked.calibration), WINDOW, asked.calibration_windows)
    held_out = held_out_windows(parent, read_texts(asked.held_out), WINDOW, asked.windows)
    check_disjoint(calibration, held_out)
    start = time.perf_counter()

    def report(rows: Sequence[Row]) -> None:
        print(rows[-1], file=sys.stderr)
        if asked.out is not None:
            write(asked, rows, calibration, held_out, time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(parent, calibration, held_out, Path(folder), report)
        bench.fits()
        for kind in ("Q4_0", "Q8_0"):
            bench.llamacpp(kind)
        for method in ("rtn", "hqq"):
            bench.uniform(method)
        if asked.peer_python is not None:
            bench.packages(asked.peer_python)
    print(table(bench.rows))


def write(asked: argparse.Namespace, rows: Sequence[Row], calibration: Windows, held_out: Windows, s: float) -> None:
    """The page, and the record that it is drawn from. `s`: seconds so far."""
    machine = device(binding.isa())
    command = (
        f"python scripts/bench_quality.py --calibration WEB_AND_WIKI --held-out WIKITEXT2 --windows {asked.windows} "
        f"--calibration-windows {asked.calibration_windows}"
    )
    note = (
        f"SmolLM2-135M-Instruct as packaged ({rows[0].size_bytes / 1e6:.0f} MB, perplexity "
        f"{rows[0].quality['perplexity']:.2f}); its weights already lie on a 4-bit grid. Calibrated on "
        f"{asked.calibration_windows} windows of {WINDOW} tokens of C4 and Wikipedia, judged on {asked.windows} "
        f"windows of WikiText-2's validation split. Bytes are of whole files.\n\n`{command}`, {s / 60:.0f} min, "
        f"{machine['cpu']}, Python {platform.python_version()}, torch {torch.__version__}.\n"
    )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(f"# Quality per byte\n\n{note}\n{table(rows)}", encoding="utf-8")
    record = {
        "command": command, "device": machine, "torch": torch.__version__, "python": platform.python_version(),
        "seconds": s, "calibration": calibration.digest, "held_out": held_out.digest,
        "rows": [vars(row) for row in rows],
    }  # fmt: skip
    asked.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
