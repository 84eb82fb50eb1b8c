"""How long quantizing will take: its own steps, done on this machine with a few real rows and windows, and scaled.

What is measured: one chunk of rows of each kind of matrix (same technique, settings, shape), what is prepared for each
Hessian, one window through the first layer, a few steps of learning, and bytes written and digested.

Shapes: T tokens of a window, H hidden size, I inputs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penjing.checkpoint import Checkpoint
from penjing.data.text import Windows
from penjing.format.families import Part
from penjing.format.hf_writer import Shard
from penjing.format.pack import round_floats
from penjing.measure.torch_decoder import DecoderScorer
from penjing.quant import BlockTechnique, apply, learns, prepares
from penjing.stages.blocks import block_of
from penjing.stages.codes import packed, row_chunks
from penjing.stages.weighing import Choice, asking, learned_together
from penjing.tensors.hessians import Moments
from penjing.tensors.precision import fast_products
from penjing.tensors.statistics import Importance

_SAMPLE = 1 << 20  # weights of a matrix, for techniques whose time goes with them
_WARM_ROWS = 16
_LEAST_S = 0.1  # short work is repeated
_STEPS = (1, 5)  # of learning
_WRITTEN = 1 << 24
_PART, _MOST_S = 0.02, 10.0  # of the work that is spent on predicting it, after the first round
_PASSES, _PASSES_WITH_HESSIANS = 4, 6  # of a window, for its Fisher information


class Rehearsal:
    """Of quantizing what is left of a model."""

    def __init__(
        self,
        parent: Checkpoint,
        chosen: Mapping[str, Choice],
        shards: Sequence[Shard],
        pending: Sequence[int],
        importances: Mapping[str, Importance],
        calibration: Windows | None,
        folder: Path,
    ) -> None:
        """`folder`: where the child will be written."""
        self.parent, self._arch = parent, parent.architecture
        self._shards = [shards[index] for index in pending]
        names = {name for shard in self._shards for name in shard.layouts}
        self.chosen = {name: choice for name, choice in chosen.items() if name in names}
        self.importances, self.calibration, self._folder = importances, calibration, folder
        self._parts: dict[str, Part] = {part.name: part for part in parent.parts()}

    @torch.no_grad()
    def seconds(self) -> float:
        """Of everything together: the mean of as many rounds as long work is worth, as other programs come and go."""
        start, found = time.perf_counter(), [self._once()]
        while time.perf_counter() - start < min(_MOST_S, _PART * sum(found) / len(found)):
            found.append(self._once())
        return sum(found) / len(found)

    def _once(self) -> float:
        self._forget()
        found = self._rounding() + self._walking() + self._writing()
        self._forget()  # a layer and what is prepared are hundreds of megabytes, and the work is still to come
        return found

    def _forget(self) -> None:
        self._known: dict[Any, tuple[Any, float]] = {}  # what is prepared
        self._learned: dict[Any, tuple[float, float, int]] = {}
        self.__dict__.pop("_layer", None)

    def _in_layer(self, name: str) -> bool:
        return 0 < block_of(name, self._arch.num_layers) <= self._arch.num_layers

    def _rounding(self) -> float:
        """Reading, choosing codes and packing them; preparing, once for all matrices with the same inputs."""
        kinds: dict[tuple[Any, ...], list[str]] = {}
        for name, choice in self.chosen.items():
            kinds.setdefault((choice.method, choice.spec, choice.layout), []).append(name)
        total = 0.0
        for (method, spec, layout), names in kinds.items():
            choice, name = Choice(method, spec, layout), names[0]
            learned = learns(method) and self._in_layer(name)
            weighed = {"importance_I": torch.ones(layout.cols)} if learned else self._weighed(choice)
            if prepares(method):
                _, prepare_s = self._prepared(choice)
                total += prepare_s * sum(self._own_hessian(other) for other in names)
            rows = next(row_chunks(layout))
            if not prepares(method):
                rows = slice(0, min(rows.stop, max(_WARM_ROWS, _SAMPLE // layout.cols)))
            self._chunk(choice, name, slice(0, min(_WARM_ROWS, rows.stop)), weighed)
            total += len(names) * timed(partial(self._chunk, choice, name, rows, weighed)) * layout.rows / rows.stop
        return total

    def _own_hessian(self, name: str) -> bool:
        """Whether it is the first of those that share what is prepared; Fisher's Hessians are not shared."""
        known = self.importances.get(name)
        if name == "embed" or (known is not None and known.hessian_II is not None):
            return True
        return name.rsplit(".", 1)[-1] not in ("k", "v", "up" if self._arch.gated else "")

    def _weighed(self, choice: Choice) -> dict[str, Any]:
        hessian_II = _some_hessian(choice.layout.cols)
        found: dict[str, Any] = {"importance_I": hessian_II.diagonal(), "hessian_II": hessian_II}
        return found | ({"prepared": self._prepared(choice)[0]} if prepares(choice.method) else {})

    def _prepared(self, choice: Choice) -> tuple[Any, float]:
        """What matrices with as many inputs share, and the time it takes."""
        key = choice.method, choice.spec, choice.layout.cols
        if key not in self._known:
            found: list[Any] = []

            def prepare() -> None:
                found[:] = [choice.method.prepare(choice.spec, hessian_II)]  # type: ignore[attr-defined]

            hessian_II = _some_hessian(choice.layout.cols)
            seconds = timed(prepare)
            self._known[key] = found[0], seconds
        return self._known[key]

    def _chunk(self, choice: Choice, name: str, rows: slice, weighed: dict[str, Any]) -> None:
        """Rows through all that is done with them. Where codes are learned elsewhere any will do for packing."""
        weight_OI = self.parent.read_part(self._parts[name], rows)
        np.isfinite(weight_OI).all()
        quantized = apply(choice.method, choice.spec, torch.from_numpy(weight_OI), **weighed)
        if not quantized.scale_ON.isfinite().all():
            return  # the stage will say so
        packed(quantized, choice.layout, name)
        round_floats(quantized.dequantize().numpy(), "bf16")

    def _walking(self) -> float:
        """Windows through blocks: for Hessians, into the next block, and what is learned from them."""
        num_layers = self._arch.num_layers
        if self.calibration is None:
            return 0.0
        asked = asking(self.chosen, self.importances, num_layers)
        learned = learned_together(self.chosen, num_layers)
        if not asked and not learned:
            return 0.0
        windows, layer = len(self.calibration.tokens_WT), self._layer
        passes = 2 if learned else 1  # the float model's hidden states as well
        reached = max([*asked, *learned]) - 1
        total = passes * reached * (layer.read_s + windows * layer.forward_s)
        total += passes * layer.read_s * self._arch.vocab_size * self._arch.hidden_size / layer.num_weights
        total += len([n for n in asked if n <= num_layers]) * (layer.read_s + windows * layer.observed_s)
        for choices in learned.values():
            for method, matrices in choices:
                total += layer.read_s + windows * layer.forward_s + self._learning(method, matrices, windows)
        return total

    @cached_property
    def _layer(self) -> _Layer:
        assert self.calibration is not None
        learned = learned_together(self.chosen, self._arch.num_layers)
        with fast_products(None if not learned else False):  # as `weighing` does
            return _Layer(self.parent, self.calibration.tokens_WT.shape[1])

    def _learning(self, method: BlockTechnique, matrices: Mapping[str, Choice], windows: int) -> float:
        """A start, a time a step, and the errors of all windows before and after."""
        key = method, tuple(choice.spec for choice in matrices.values())
        if key not in self._learned:
            self._learned[key] = self._layer.learn(method, {name: choice.spec for name, choice in matrices.items()})
        start_s, step_s, few = self._learned[key]
        steps = int(next(iter(matrices.values())).spec.steps)
        return start_s + steps * step_s + 2 * max(0, windows - few) * self._layer.forward_s

    def _writing(self) -> float:
        """Copying what stays, writing and syncing everything, and the digest of what was written."""
        written = sum(spec.nbytes for shard in self._shards for spec in shard.tensors.values())
        codes = sum(layout.nbytes for shard in self._shards for layout in shard.layouts.values())
        size = min(_WRITTEN, written + codes)
        content = np.random.default_rng(0).bytes(size)
        write_s = timed(lambda: _write(self._folder, content)) / size
        sync_s = timed(lambda: _write(self._folder, b"0" * 4096))
        digest_s = timed(lambda: hashlib.sha256(content).digest()) / size
        copied = sum(self._copied(shard) for shard in self._shards)
        copy_s = self._copying() if copied else 0.0
        files = 4 * len(self._shards)  # floats, codes, progress, and the folder
        return (written + codes) * write_s + files * sync_s + written * digest_s + copied * copy_s

    def _copied(self, shard: Shard) -> int:
        """Weights that stay as they are."""
        every = sum(int(np.prod(spec.shape)) for spec in shard.tensors.values())
        return max(0, every - sum(layout.rows * layout.cols for layout in shard.layouts.values()))

    def _copying(self) -> float:
        """A weight."""
        name, info = max(self.parent.tensors.items(), key=lambda item: int(np.prod(item[1].shape)))
        row = max(1, int(np.prod(info.shape[1:])))
        rows = min(info.shape[0], max(1, _SAMPLE // row))
        return timed(lambda: round_floats(self.parent.read(name, slice(0, rows)), "bf16")) / (rows * row)


@torch.no_grad()
def calibration_seconds(parent: Checkpoint, calibration: Windows, *, hessians: bool) -> float:
    """Of the Fisher information, whose file counts its passes."""
    windows, length = calibration.tokens_WT.shape
    layer = _Layer(parent, int(length))
    passes = (_PASSES_WITH_HESSIANS if hessians else _PASSES) * layer.model_s(parent)
    weights = sum(rows * cols for rows, cols in parent.architecture.matrix_shapes().values())
    return weights * layer.read_s / layer.num_weights + int(windows) * passes


@torch.no_grad()
def forward_seconds(parent: Checkpoint, length: int) -> float:
    """Of a window of so many tokens through the float model."""
    return _Layer(parent, length).model_s(parent)


class _Layer:
    """The first layer and one window of noise."""

    def __init__(self, parent: Checkpoint, length: int) -> None:
        self._arch = parent.architecture
        parts = [part for part in parent.parts() if block_of(part.name, self._arch.num_layers) == 1]
        self._weights: dict[str, Tensor] = {}

        def read() -> None:
            self._weights = {part.name: torch.from_numpy(parent.read_part(part)) for part in parts}

        self.read_s = timed(read)
        self.num_weights = sum(weight.numel() for weight in self._weights.values())
        self._x_TH = torch.randn(length, self._arch.hidden_size, generator=torch.Generator().manual_seed(0))
        self.forward_s = timed(lambda: self._forward({}, self._x_TH))
        moments = Moments()
        observed = DecoderScorer(self._arch, self._weights, observe=moments.add)
        observed.layer(0, self._x_TH)  # the first window makes the sums, others are added
        self.observed_s = timed(lambda: observed.layer(0, self._x_TH))

    def model_s(self, parent: Checkpoint) -> float:
        """Seconds of the window through the whole model; the head is a product as large as it is."""
        embed = next(part for part in parent.parts() if part.name == "embed")
        some_VH = torch.from_numpy(parent.read_part(embed, slice(0, 4096)))
        head_s = timed(lambda: self._x_TH @ some_VH.T) * self._arch.vocab_size / len(some_VH)
        return self._arch.num_layers * self.forward_s + head_s

    def _forward(self, changed: Mapping[str, Tensor], x_TH: Tensor) -> Tensor:
        return DecoderScorer(self._arch, self._weights | dict(changed)).layer(0, x_TH)

    def learn(self, method: BlockTechnique, specs: Mapping[str, Any]) -> tuple[float, float, int]:
        """Seconds beside the steps, seconds a step, and windows that it was tried with."""
        specs = {f"layers.0.{name.split('.', 2)[2]}": spec for name, spec in specs.items()}
        few = int(next(iter(specs.values())).windows)
        ones = {name: torch.ones(self._weights[name].shape[1]) for name in specs}
        inputs = [self._x_TH] * few
        targets = [self._forward({}, self._x_TH)] * few

        def run(steps: int) -> float:
            shortened = {name: dataclasses.replace(spec, steps=steps) for name, spec in specs.items()}
            start = time.perf_counter()
            method.quantize_block(shortened, self._weights, ones, self._forward, inputs, targets, 0)
            return time.perf_counter() - start

        run(_STEPS[0])
        short_s, long_s = (run(steps) for steps in _STEPS)
        step_s = max(0.0, long_s - short_s) / (_STEPS[1] - _STEPS[0])
        return max(0.0, short_s - _STEPS[0] * step_s), step_s, few


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Mean seconds; what is short is done again until there is something to measure, its first time not counted."""
    start = clock()
    work()
    first_s = clock() - start
    if first_s >= _LEAST_S:
        return first_s
    count, start = 0, clock()
    while clock() - start < _LEAST_S / 2:
        work()
        count += 1
    return (clock() - start) / count


def _some_hessian(cols: int) -> Tensor:
    """Positive definite, with no zeros that a product could skip: values do not change the time."""
    return torch.full((cols, cols), 0.1).fill_diagonal_(1.0)


def _write(folder: Path, content: bytes) -> None:
    """To a file without a name, which nothing has to clean up."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
