"""Trying a technique on some matrices of a float model that is in memory: what becomes of its predictions.

Nothing is written. What the shipped file does is measured of the file; this tells choices apart before there is one.

Shapes: T tokens of a window, C positions of a chunk, V vocabulary, H hidden size, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penjing.checkpoint import Checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.measure.quality import Quality, Scorer, qualities
from penjing.measure.torch_decoder import DecoderScorer
from penjing.quant import apply, layout_for, learns, technique, uses_hessian
from penjing.recipe.options import group_sizes
from penjing.stages import build_spec
from penjing.stages.blocks import block_of
from penjing.tensors.statistics import Importance

#: windows of text by their tokens' bytes, to what enters a layer of the float model
Entering = Mapping[bytes, Tensor]


class _Changed:
    """The model with some weights changed, computed from the first layer that they touch."""

    def __init__(self, decoder: DecoderScorer, first: int, entering_TH: Entering) -> None:
        self._decoder, self._first, self._entering_TH = decoder, first, entering_TH

    @property
    def vocab_size(self) -> int:
        return self._decoder.vocab_size

    def logits(self, tokens_T: NDArray[np.int32]) -> Iterator[NDArray[np.float32]]:
        return self._decoder.logits_from(self._first, self._entering_TH[tokens_T.tobytes()])


class Trials:
    """A float model in memory, and held-out windows.

    Trials are asked for by their first layer, ascending: what enters it is computed once and never again.
    """

    def __init__(self, parent: Checkpoint, held_out: Windows) -> None:
        self._architecture = parent.architecture
        self._weights = {part.name: torch.from_numpy(parent.read_part(part)) for part in parent.parts()}
        self._parent = DecoderScorer(parent.architecture, self._weights)
        self._held_out = held_out
        self._layer = 0
        self._entering_TH: dict[bytes, Tensor] = {}

    def weight(self, name: str) -> Tensor:
        return self._weights[name]

    def first_layer(self, names: Collection[str]) -> int:
        """The first layer whose inputs or weights these matrices change; -1: the embedding."""
        return min(block_of(name, self._architecture.num_layers) for name in names) - 1

    def judge(self, changes: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Quality]:
        """Quality, with KL to the unchanged model, of several sets of changed weights."""
        firsts = {label: self.first_layer(changed) for label, changed in changes.items()}
        scorers: dict[str, Scorer] = {}
        for label in sorted(changes, key=firsts.__getitem__):
            decoder = DecoderScorer(self._architecture, self._weights | dict(changes[label]))
            if firsts[label] < 0:
                scorers[label] = decoder
            else:
                scorers[label] = _Changed(decoder, firsts[label], self._entering(firsts[label]))
        parent = _Changed(self._parent, self._layer, self._entering(self._layer))
        return qualities(scorers, self._held_out, parent=parent)

    @torch.inference_mode()
    def _entering(self, layer: int) -> Entering:
        """What enters a layer, at or after the one of the last call."""
        if layer < self._layer or not self._entering_TH:
            self._layer = 0
            self._entering_TH = {
                tokens_T.tobytes(): self._parent.embed(torch.from_numpy(tokens_T.astype(np.int64)))
                for tokens_T in self._held_out.tokens_WT
            }
        for n in range(self._layer, layer):
            self._entering_TH = {key: self._parent.layer(n, x_TH) for key, x_TH in self._entering_TH.items()}
        self._layer = layer
        return self._entering_TH


class Rounding:
    """A technique with settings, ready for any matrix."""

    def __init__(self, method: str, settings: Mapping[str, Any]) -> None:
        self.method = method
        self._technique, self._settings = technique(method), dict(settings)
        if learns(self._technique):
            raise PenjingError(
                f"{method} learns a whole block at a time", where="--method", attempt="rtn, or gptq with --data FILE"
            )

    def spec(self, name: str, cols: int) -> Any:
        """Settings for a matrix; groups of 32 or so where nothing else is said."""
        settings = {"group_size": group_sizes(cols)[0]} | self._settings
        return build_spec(self._technique.Spec, settings, where=f"{self.method}, for {name}")

    def size_bytes(self, name: str, rows: int, cols: int) -> int:
        """Of the matrix in a packed file."""
        layout = layout_for(self.spec(name, cols), rows, cols)
        layout.check(where=name)
        return layout.nbytes

    def __call__(self, name: str, weight_OI: Tensor, importance: Importance | None) -> Tensor:
        """The weight that the codes stand for. PenjingError where the technique needs a text and there is none."""
        rows, cols = weight_OI.shape
        spec = self.spec(name, cols)
        layout_for(spec, rows, cols).check(where=name)
        importance_I = None if importance is None else importance.mean_input_I()
        hessian_II = None if importance is None else importance.hessian_II
        if importance_I is not None and hessian_II is None and uses_hessian(self._technique):
            hessian_II = torch.diag(importance_I)  # a lookup's inputs have no other
        return apply(self._technique, spec, weight_OI, importance_I, hessian_II).dequantize()
