"""Documents to packed batches that any step can be asked for.

Shapes: B rows of a batch, T tokens of a row, D documents of a row, N tokens of a document or of a stream.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penjing.errors import PenjingError

#: documents without a label, as torch's losses ignore it
NO_LABEL = -100


class Document(Protocol):
    """What `data.encode` makes of a record: token ids, which of them are targets, and a class where there is one."""

    @property
    def token_T(self) -> NDArray[np.int32]: ...  # noqa: N802
    @property
    def target_T(self) -> NDArray[np.bool_]: ...  # noqa: N802
    @property
    def label(self) -> int | None: ...


@dataclass(frozen=True)
class Tokens:
    """A document of its own: all tokens after the first are targets unless `target_T` says otherwise."""

    token_T: NDArray[np.int32]  # noqa: N815
    target_T: NDArray[np.bool_]  # noqa: N815
    label: int | None = None


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents.

    `position_BT` restarts at 0 in every document; `document_BT` is the document's number in its row, -1 where the row
    is filled up; `weight_BT` weighs the loss of predicting this token from those before it in its document, 0 where it
    is no target; `label_BD` is the class of each document, `NO_LABEL` where there is none.
    """

    token_BT: Tensor  # noqa: N815
    position_BT: Tensor  # noqa: N815
    document_BT: Tensor  # noqa: N815
    weight_BT: Tensor  # noqa: N815
    label_BD: Tensor | None = None  # noqa: N815

    def to(self, device: str | torch.device) -> Batch:
        return self._of(lambda part: part.to(device))

    @property
    def num_tokens(self) -> int:
        """Without what rows are filled up with."""
        return int((self.document_BT >= 0).sum())

    def rows(self, start: int, stop: int) -> Batch:
        """Some of the rows, as a batch."""
        return self._of(lambda part: part[start:stop])

    def pieces(self, num_tokens: int) -> list[Batch]:
        """All rows, in batches of about `num_tokens` tokens at most."""
        num_rows, length = self.token_BT.shape
        size = max(1, num_tokens // length)
        return [self.rows(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]

    def take(self, index_B: Tensor) -> Batch:
        """Copies of rows, as a batch."""
        return self._of(lambda part: part[index_B])

    def _of(self, change: Callable[[Tensor], Tensor]) -> Batch:
        label_BD = None if self.label_BD is None else change(self.label_BD)
        token_BT, position_BT = change(self.token_BT), change(self.position_BT)
        return Batch(token_BT, position_BT, change(self.document_BT), change(self.weight_BT), label_BD)


class Batches(Protocol):
    """Batches of every step. `at` answers the same for the same step, whenever it is asked: so a resumed run sees what
    the first one would have seen. It raises PenjingError where its source has changed."""

    @property
    def digest(self) -> str: ...
    def at(self, step: int) -> list[Batch]: ...


def document(token_T: Any, *, answer_from: int = 1, label: int | None = None) -> Tokens:
    """A document of token ids whose targets are those from `answer_from` on."""
    token_T = np.asarray(token_T, np.int32)
    return Tokens(token_T, np.arange(len(token_T)) >= max(1, answer_from), label)


def pack(documents: Sequence[Document]) -> Batch:
    """One row of documents, one after the other."""
    sizes = [len(entry.token_T) for entry in documents]
    weight_T = np.concatenate([np.asarray(entry.target_T, np.float32) for entry in documents])
    weight_T[np.cumsum([0, *sizes[:-1]])] = 0.0  # nothing stands before a first token
    labels = [NO_LABEL if entry.label is None else entry.label for entry in documents]
    return Batch(
        token_BT=torch.from_numpy(np.concatenate([entry.token_T for entry in documents]).astype(np.int64))[None],
        position_BT=torch.cat([torch.arange(size) for size in sizes])[None],
        document_BT=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[None],
        weight_BT=torch.from_numpy(weight_T)[None],
        label_BD=None if all(label == NO_LABEL for label in labels) else torch.tensor([labels]),
    )


def stack(rows: Sequence[Batch]) -> Batch:
    """Rows as one batch, filled up to the longest."""

    def filled(parts: Sequence[Tensor], value: float) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([part[0] for part in parts], batch_first=True, padding_value=value)

    labels = [row.label_BD for row in rows]
    some = any(label is not None for label in labels)
    none_1D = [torch.full((1, int(row.document_BT.max()) + 1), NO_LABEL) for row in rows] if some else []
    return Batch(
        token_BT=filled([row.token_BT for row in rows], 0),
        position_BT=filled([row.position_BT for row in rows], 0),
        document_BT=filled([row.document_BT for row in rows], -1),
        weight_BT=filled([row.weight_BT for row in rows], 0.0),
        label_BD=filled([x if x is not None else none_1D[i] for i, x in enumerate(labels)], NO_LABEL) if some else None,
    )


def fill_rows(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Which documents share a row of `length` tokens: each goes, longest first, where it leaves the least room.

    How many rows there are, and how full, depends on the sizes alone and not on the order of documents of one size.
    Best-fit decreasing needs at most 11/9 of the fewest rows, + 1 (Johnson 1974); as in arXiv:2107.02027.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the room they have
    rooms = 0  # bit k: some row has room of k tokens
    for index in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        size = sizes[index]
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(index)
        with_room[room - size].append(row)
        rooms |= 1 << (room - size)
    return rows


class PackedBatches:
    """Documents packed into rows of at most `length` tokens, `rows` of them a batch, `accumulate` batches a step.

    Every epoch mixes documents anew: those of one size change places, and so do rows. An epoch ends where its rows end,
    so one step may see the end of one and the beginning of the next.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        *,
        rows: int,
        length: int,
        accumulate: int = 1,
        seed: int = 0,
        files: Iterable[Path] = (),
    ) -> None:
        """`files` are watched: if one of them changes while training goes on, `at` raises PenjingError."""
        self._documents, self._length, self._seed = documents, length, seed
        self._rows, self._accumulate = rows, accumulate
        self._sizes = [len(entry.token_T) for entry in documents]
        _check(self._sizes, length)
        self._watched = Watched(files)
        self.rows_per_epoch = len(fill_rows(self._sizes, length))
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @cached_property
    def digest(self) -> str:
        """sha256 over all documents, and how they are packed."""
        found = hashlib.sha256(f"{self._rows} {self._length} {self._accumulate} {self._seed}\n".encode())
        for entry in self._documents:
            found.update(f"{len(entry.token_T)} {entry.label}\n".encode())
            found.update(np.ascontiguousarray(entry.token_T, "<i4").tobytes())
            found.update(np.ascontiguousarray(entry.target_T, np.bool_).tobytes())
        return found.hexdigest()

    @property
    def steps_per_epoch(self) -> float:
        return self.rows_per_epoch / (self._rows * self._accumulate)

    @property
    def fullness(self) -> float:
        """Fraction of the rows' room that holds tokens."""
        return sum(self._sizes) / (self.rows_per_epoch * self._length)

    def at(self, step: int) -> list[Batch]:
        self._watched.check()
        first = step * self._rows * self._accumulate
        return [
            stack([self._row(first + batch * self._rows + row) for row in range(self._rows)])
            for batch in range(self._accumulate)
        ]

    def _row(self, number: int) -> Batch:
        epoch, at = divmod(number, self.rows_per_epoch)
        if epoch != self._epoch[0]:
            self._epoch = (epoch, self._mixed(epoch))
        return pack([self._documents[index] for index in self._epoch[1][at]])

    def _mixed(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._sizes))
        rows = fill_rows([self._sizes[index] for index in order], self._length)
        return [[int(order[index]) for index in rows[row]] for row in rng.permutation(len(rows))]


class Watched:
    """Files that data came from, as they were."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._stamps = {Path(file): _stamp(Path(file)) for file in files}

    def check(self) -> None:
        """Raise PenjingError if one of them has changed."""
        for file, stamp in self._stamps.items():
            if _stamp(file) != stamp:
                raise PenjingError(
                    "the data changed while training ran",
                    where=str(file),
                    attempt="put the old file back and run again to continue, or begin anew with --force",
                )


def windows(token_N: NDArray[np.int32], length: int) -> list[Tokens]:
    """A stream of tokens cut into documents of `length`, what remains at the end as a shorter one (2 tokens at least).

    The first token of each is context only.
    """
    starts = range(0, len(token_N), length)
    return [document(token_N[start : start + length]) for start in starts if len(token_N) - start > 1]


def _check(sizes: Sequence[int], length: int) -> None:
    if not sizes or max(sizes) < 1:
        raise PenjingError("no documents to train on", attempt="data with at least one document that is not empty")
    too_long = [index for index, size in enumerate(sizes) if not 0 < size <= length]
    if too_long:
        raise PenjingError(
            f"{len(too_long)} documents do not fit a row of {length} tokens",
            where=f"document {too_long[0]} has {sizes[too_long[0]]} tokens",
            attempt="cut or drop them, or a larger length",
        )


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = os.stat(file)
    except OSError as error:
        raise PenjingError(f"the data went away: {error.strerror}", where=str(file)) from error
    return found.st_size, found.st_mtime_ns
