"""The contestants: made one after another, judged, and forgotten."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from quality.packages import CONTESTANTS, Peers
from quality.page import Row

from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.data.text import Corpus, Windows
from penjing.errors import PenjingError
from penjing.format.pack import Layout
from penjing.measure import torch_decoder
from penjing.measure.quality import quality
from penjing.quant import technique
from penjing.recipe.fit import Limits, make_tuned, make_within
from penjing.recipe.options import TUNED_BY, options
from penjing.stages.calibrate import calibrate

_PEERS = Path(__file__).resolve().parents[1] / "peers"
_UNIFORM = [(bits, group) for bits in (2, 3, 4, 5, 6) for group in (32, 64, 96, 192, 576)]


@dataclass(frozen=True)
class Size:
    """Bytes that a file may have, and minutes of tuning that it gets."""

    max_bytes: int
    minutes: float = 0.0

    @classmethod
    def read(cls, text: str) -> Size:
        """MB, or MB:MINUTES."""
        megabytes, _, minutes = text.partition(":")
        return cls(round(1e6 * float(megabytes)), float(minutes or 0))


class Contest:
    """`rows`: what was found so far, the parent first."""

    def __init__(
        self,
        parent: Checkpoint,
        calibration: Windows,
        held_out: Windows,
        folder: Path,
        report: Callable[[Sequence[Row]], None],
    ) -> None:
        """`folder` keeps what takes long, for another run. `report` is called with all rows so far, after each."""
        self.parent, self.calibration, self.held_out, self.folder = parent, calibration, held_out, folder
        self.report = report
        self.teacher = torch_decoder.scorer(parent)
        self.weights = {part.name: torch.from_numpy(parent.read_part(part)) for part in parent.parts()}
        self.rows = [Row("parent", parent.file_bytes, quality(self.teacher, held_out).to_json())]
        self.beside_bytes = 0  # what a packed file holds beside its matrices
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, size_bytes: int, scorer: Any, predicted_kl: float | None = None) -> None:
        found = quality(scorer, self.held_out, parent=self.teacher).to_json()
        self.rows.append(Row(name, size_bytes, found, predicted_kl))
        self.report(self.rows)

    def fits(self, sizes: Sequence[Size], learnt: Corpus | None, hard: float = 0.0) -> None:
        """What `penjing fit` makes of each size; `learnt`: the text to tune on, `hard`: share of its own loss."""
        spec = {"hard": hard} if hard else {}
        importances = calibrate(self.parent, self.calibration, cache=self.folder / "importance.safetensors")
        possible = options(self.parent, importances)
        for size in sizes:
            name = f"penjing fit {size.max_bytes / 1e6:g} MB"
            run = self.folder / f"fit-{size.max_bytes}"
            draft = run / "fit.penjing"
            run.mkdir(exist_ok=True)
            limits = Limits(max_bytes=size.max_bytes)
            chosen = make_within(self.parent, run, draft, possible, importances, self.calibration, limits, 0, None)
            packed = open_checkpoint(draft)
            self.beside_bytes = packed.file_bytes - sum(option.size_bytes for option in chosen.values())
            predicted = sum(option.error for option in chosen.values())
            self.add(name, packed.file_bytes, torch_decoder.scorer(packed), predicted)
            if size.minutes and learnt is not None:
                make_tuned(self.parent, run, draft, learnt, size.minutes, 0, None, spec)
                packed = open_checkpoint(draft)
                tuned = f"{name}, {TUNED_BY} {size.minutes:g} min" + f", hard {hard:g}" * bool(hard)
                self.add(tuned, packed.file_bytes, torch_decoder.scorer(packed))

    def uniform(self, method_name: str, sizes: Sequence[Size]) -> None:
        """Of all bits and group sizes the largest file that is no larger than each size."""
        method = technique(method_name)
        shapes = self.parent.architecture.matrix_shapes()
        choices = [
            (self._size(shapes, bits, group, symmetric), bits, group, symmetric)
            for bits, group in _UNIFORM
            for symmetric in (True, False)
            if all(cols % group == 0 for _, cols in shapes.values())
        ]
        largest = {max((choice for choice in choices if choice[0] <= size.max_bytes), default=None) for size in sizes}
        for size, bits, group, symmetric in sorted(filter(None, largest), reverse=True):
            spec = method.Spec(bits=bits, group_size=group, symmetric=symmetric)
            changed = {name: method.quantize(spec, self.weights[name]).dequantize() for name in shapes}
            scorer = torch_decoder.DecoderScorer(self.parent.architecture, self.weights | changed)
            kind = "symmetric" if symmetric else "asymmetric"
            self.add(f"{method_name}, {bits} bits, groups of {group}, {kind}", size, scorer)

    def _size(self, shapes: Mapping[str, tuple[int, int]], bits: int, group: int, symmetric: bool) -> int:
        layouts = [
            Layout(kind="codes", rows=rows, cols=cols, bits=bits, group_size=group, symmetric=symmetric)
            for rows, cols in shapes.values()
        ]
        return self.beside_bytes + sum(layout.nbytes for layout in layouts)

    def packages(self, python: str) -> None:
        """Other packages' quantizers; `python` has them."""
        peers = Peers(python, self.parent, self.calibration, self.folder)
        for peer in CONTESTANTS:
            changed = peers.weights(peer)
            scorer = torch_decoder.DecoderScorer(self.parent.architecture, self.weights | changed)
            self.add(peer.title, self.beside_bytes + peer.size_bytes(self.parent), scorer)

    def llamacpp(self, kinds: Sequence[str], python: str) -> None:
        """By llama.cpp's own quantizer; `python` has llama-cpp-python. A parent that is no GGUF file is exported."""
        source = self._gguf()
        for kind in kinds:
            path = self.folder / f"{kind}.gguf"
            if not path.exists():
                command = [python, str(_PEERS / "gguf_quantize.py"), str(source), str(path), kind]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                scorer = torch_decoder.scorer(open_checkpoint(path))
            except PenjingError as error:
                print(f"llama.cpp {kind} is left out: {error}", file=sys.stderr)
                continue
            self.add(f"llama.cpp {kind}", path.stat().st_size, scorer)

    def _gguf(self) -> Path:
        if self.parent.path.suffix == ".gguf":
            return self.parent.path
        path = self.folder / "parent.gguf"
        if not path.exists():
            command = [sys.executable, "-m", "penjing", "export", str(self.parent.path), str(path), "--to", "gguf"]
            subprocess.run(command, check=True)
        return path
