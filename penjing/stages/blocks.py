"""Block by block: each layer's inputs are those that come out of the quantized layers before it.

Gives Hessians, or what learning needs: those inputs, and what the float model makes of its own. One layer's weights and
the hidden states of all calibration windows are in memory at a time (those of the float model too, for learning). A run
that continues reads finished layers from their shards, as the run that was killed would have done, so what is found and
the bytes are the same.

Shapes: W windows, T tokens, H hidden size, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penjing.checkpoint import Checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.format.families import Part
from penjing.measure.torch_decoder import DecoderScorer
from penjing.tensors.hessians import Moments
from penjing.tensors.learning import Forward

_ROWS = 1 << 22  # weights of the embedding read at a time


class ReadPart(Protocol):
    """A weight of a checkpoint, or some of its rows, as float32."""

    def __call__(self, part: Part, rows: slice | None = None) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Lesson:
    """A layer in float, and what it reads and should put out, window by window."""

    weights: Mapping[str, Tensor]
    forward: Forward
    inputs: list[Tensor]
    targets: list[Tensor]


class Walk:
    """Goes through the blocks in order: 0 is the embedding, n + 1 layer n, then the final norm and the head."""

    def __init__(
        self, parent: Checkpoint, calibration: Windows, read_child: ReadPart, *, learning: bool = False
    ) -> None:
        """`read_child`: weights as the child has them, asked of finished blocks only.

        `learning`: keep the float model's hidden states too, for `Lesson`s.
        """
        self._parent = parent
        self._tokens_WT = torch.from_numpy(calibration.tokens_WT.astype(np.int64))
        self._read_child = read_child
        self._hidden: list[Tensor] = []  # [T, H] a window, what goes into block `_next`
        self._float_hidden: list[Tensor] | None = [] if learning else None  # the same in the float model
        self._next = 0

    @torch.no_grad()
    def hessians(self, block: int) -> dict[str, Tensor]:
        """X^T X by canonical name of the block's matrices; all blocks before it are finished. A lookup has none.

        Raises PenjingError where activations are not finite.
        """
        moments = Moments()
        if 0 < block <= self._num_layers:
            self._reach(block)
            decoder = self._decoder(block, self._parent.read_part, moments)
            for x_TH in self._hidden:
                decoder.layer(block - 1, x_TH)
        elif block > 0 and not self._parent.architecture.tied:
            self._reach(block)
            decoder = self._decoder(block, self._parent.read_part, None, besides=("head",))
            for x_TH in self._hidden:
                moments.add("head", decoder.final_norm(x_TH))
        found = moments.hessians()
        for name, hessian_II in found.items():
            if not hessian_II.isfinite().all():
                raise PenjingError(
                    "its inputs are not finite on the calibration text",
                    where=f"{name} of {self._parent.name}",
                    attempt="penjing measure on the parent, or other calibration text",
                )
        return found

    @torch.no_grad()
    def lesson(self, block: int) -> Lesson:
        """What a layer is learned from; all blocks before it are finished."""
        if self._float_hidden is None:
            raise ValueError("a walk for learning was not asked for")
        self._reach(block)
        weights = {part.name: torch.from_numpy(self._parent.read_part(part)) for part in self._parts(block)}
        floats = DecoderScorer(self._parent.architecture, weights)

        def forward(changed: Mapping[str, Tensor], x_TH: Tensor) -> Tensor:
            return DecoderScorer(self._parent.architecture, weights | dict(changed)).layer(block - 1, x_TH)

        targets = [floats.layer(block - 1, x_TH) for x_TH in self._float_hidden]
        return Lesson(weights, forward, self._hidden, targets)

    def _reach(self, block: int) -> None:
        while self._next < block:
            self._hidden = self._through(self._next, self._read_child, self._hidden)
            if self._float_hidden is not None:
                self._float_hidden = self._through(self._next, self._parent.read_part, self._float_hidden)
            self._next += 1

    def _parts(self, block: int) -> list[Part]:
        return [part for part in self._parent.parts() if block_of(part.name, self._num_layers) == block]

    def _decoder(
        self, block: int, read: ReadPart, moments: Moments | None, besides: tuple[str, ...] = ()
    ) -> DecoderScorer:
        parts = [part for part in self._parts(block) if part.name not in besides]
        weights = {part.name: torch.from_numpy(read(part)) for part in parts}
        observe = None if moments is None else moments.add
        return DecoderScorer(self._parent.architecture, weights, observe=observe)

    @property
    def _num_layers(self) -> int:
        return self._parent.architecture.num_layers

    def _through(self, block: int, read: ReadPart, hidden: list[Tensor]) -> list[Tensor]:
        """What comes out of a block; windows take the place of those that went in, one by one."""
        if block == 0:
            return self._embedded(read)
        decoder = self._decoder(block, read, None)
        for window, x_TH in enumerate(hidden):
            hidden[window] = decoder.layer(block - 1, x_TH)
        return hidden

    def _embedded(self, read: ReadPart) -> list[Tensor]:
        """Of a large vocabulary's rows only some are needed, and all in float32 would be more than a layer."""
        part = next(part for part in self._parts(0) if part.name == "embed")
        vocab, hidden = self._parent.architecture.matrix_shapes()["embed"]
        token_N, place_WT = torch.unique(self._tokens_WT, return_inverse=True)
        row_NH = torch.empty(len(token_N), hidden)
        step = max(1, _ROWS // hidden)
        for start in range(0, vocab, step):
            begin, end = (int(torch.searchsorted(token_N, edge)) for edge in (start, start + step))
            if begin < end:
                rows = torch.from_numpy(read(part, slice(start, min(start + step, vocab))))
                row_NH[begin:end] = rows[token_N[begin:end] - start]
        embedding = DecoderScorer(self._parent.architecture, {"embed": row_NH})
        return [embedding.embed(place_T) for place_T in place_WT]


def block_of(name: str, num_layers: int) -> int:
    """The block of a canonical name."""
    if name.startswith("layers."):
        return int(name.split(".")[1]) + 1
    return 0 if name == "embed" else num_layers + 1
