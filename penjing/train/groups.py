"""Batches of documents that belong together: an anchor and its positive, a chosen and a rejected answer.

A group is never torn apart: its documents stand side by side in one row. Rows are not torn apart by the loop either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from penjing.errors import PenjingError
from penjing.train.batch import Batch, Document, Watched, pack, stack


class GroupedBatches:
    """`rows` rows a step, each of `groups_per_row` groups; every epoch in another order."""

    def __init__(
        self,
        groups: Sequence[Sequence[Document]],
        *,
        rows: int,
        groups_per_row: int = 1,
        seed: int = 0,
        files: Iterable[Path] = (),
    ) -> None:
        """`files` are watched: if one of them changes while training goes on, `at` raises PenjingError."""
        if len(groups) < groups_per_row or len({len(group) for group in groups}) > 1:
            raise PenjingError(
                f"{len(groups)} groups do not fill a row of {groups_per_row}", attempt="more data, or fewer a row"
            )
        self._groups, self._rows, self._per_row, self._seed = groups, rows, groups_per_row, seed
        self._watched = Watched(files)

    @cached_property
    def digest(self) -> str:
        found = hashlib.sha256(f"groups {self._rows} {self._per_row} {self._seed}\n".encode())
        for group in self._groups:
            for entry in group:
                found.update(f"{len(entry.token_T)} {entry.label}\n".encode())
                found.update(np.ascontiguousarray(entry.token_T, "<i4").tobytes())
                found.update(np.ascontiguousarray(entry.target_T, np.bool_).tobytes())
        return found.hexdigest()

    @property
    def steps_per_epoch(self) -> float:
        return self._rows_per_epoch / self._rows

    @property
    def _rows_per_epoch(self) -> int:
        return len(self._groups) // self._per_row  # groups that do not fill a row wait for another epoch's order

    def at(self, step: int) -> list[Batch]:
        self._watched.check()
        first = step * self._rows
        return [stack([self._row(number) for number in range(first, first + self._rows)])]

    def _row(self, number: int) -> Batch:
        epoch, at = divmod(number, self._rows_per_epoch)
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._groups))
        chosen = order[at * self._per_row : (at + 1) * self._per_row]
        return pack([entry for index in chosen for entry in self._groups[index]])
