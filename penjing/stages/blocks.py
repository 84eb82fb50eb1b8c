"""Hessians block by block: each layer's inputs are those that come out of the quantized layers before it.

One layer's weights and the hidden states of all calibration windows are in memory at a time. A run that continues reads
finished layers from their shards, as the run that was killed would have done, so Hessians and bytes are the same.

Shapes: W windows, T tokens, H hidden size, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable

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

#: a weight of the child: a part of a block that is finished, as float32
ReadPart = Callable[[Part], NDArray[np.float32]]


class Walk:
    """Goes through the blocks in order: 0 is the embedding, n + 1 layer n, then the final norm and the head."""

    def __init__(self, parent: Checkpoint, calibration: Windows, read_child: ReadPart) -> None:
        """`read_child(part)`: a weight as the child has it, asked of finished blocks only."""
        self._parent = parent
        self._tokens_WT = torch.from_numpy(calibration.tokens_WT.astype(np.int64))
        self._read_child = read_child
        self._hidden: list[Tensor] = []  # [T, H] a window, what goes into block `_next`
        self._next = 0

    @torch.inference_mode()
    def hessians(self, block: int) -> dict[str, Tensor]:
        """X^T X by canonical name of the block's matrices; all blocks before it are finished. A lookup has none.

        Raises PenjingError where activations are not finite.
        """
        while self._next < block:
            self._pass_through(self._next, self._decoder(self._next, self._read_child, None))
            self._next += 1
        moments = Moments()
        if block > 0:
            decoder = self._decoder(block, self._parent.read_part, moments)
            for x_TH in self._hidden:
                self._forward(block, decoder, x_TH)
        found = moments.hessians()
        for name, hessian_II in found.items():
            if not hessian_II.isfinite().all():
                raise PenjingError(
                    "its inputs are not finite on the calibration text",
                    where=f"{name} of {self._parent.name}",
                    attempt="penjing measure on the parent, or other calibration text",
                )
        return found

    def _decoder(self, block: int, read: ReadPart, moments: Moments | None) -> DecoderScorer:
        parts = [part for part in self._parent.parts() if block_of(part.name, self._num_layers) == block]
        weights = {part.name: torch.from_numpy(read(part)) for part in parts}
        observe = None if moments is None else moments.add
        return DecoderScorer(self._parent.architecture, weights, observe=observe)

    @property
    def _num_layers(self) -> int:
        return self._parent.architecture.num_layers

    def _pass_through(self, block: int, decoder: DecoderScorer) -> None:
        if block == 0:
            self._hidden = [decoder.embed(tokens_T) for tokens_T in self._tokens_WT]
            return
        for window, x_TH in enumerate(self._hidden):
            self._hidden[window] = self._forward(block, decoder, x_TH)

    def _forward(self, block: int, decoder: DecoderScorer, x_TH: Tensor) -> Tensor:
        if block <= self._num_layers:
            return decoder.layer(block - 1, x_TH)
        normed_TH = decoder.final_norm(x_TH)
        return normed_TH if self._parent.architecture.tied else decoder.head(normed_TH)


def block_of(name: str, num_layers: int) -> int:
    """The block of a canonical name."""
    if name.startswith("layers."):
        return int(name.split(".")[1]) + 1
    return 0 if name == "embed" else num_layers + 1
