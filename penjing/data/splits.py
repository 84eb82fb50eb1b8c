"""Parts of a data set for training, validation and the last judgement, the same for the same data and seed.

Records that say the same go into the same part. Classes keep their shares.

Shapes: N records, K groups of records that say the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from penjing.data.dataset import Dataset
from penjing.data.records import Record
from penjing.errors import PenjingError


@dataclass(frozen=True)
class Part:
    """Some records of a data set, by index, in its order."""

    dataset: Dataset
    index_N: NDArray[np.int64]  # noqa: N815

    def __len__(self) -> int:
        return len(self.index_N)

    def __getitem__(self, at: int) -> Record:
        return self.dataset[int(self.index_N[at])]

    def records(self) -> Iterator[Record]:
        return self.dataset.records(self.index_N)

    @cached_property
    def digest(self) -> str:
        found = hashlib.sha256(self.dataset.digest.encode())
        found.update(np.ascontiguousarray(self.index_N, "<i8").tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class Splits:
    train: Part
    validation: Part
    held_out: Part


def whole(dataset: Dataset) -> Part:
    return Part(dataset, np.arange(len(dataset)))


def split(dataset: Dataset, *, validation: float = 0.1, held_out: float = 0.1, seed: int = 0) -> Splits:
    """Fractions of the records; 0 leaves a part empty. Where classes are large enough, each is in every part.

    Within a class, groups of the same content go by the hash of content and seed: the order of rows changes nothing.
    Raises PenjingError where a part that was asked for would be empty.
    """
    if not (0 <= validation < 1 and 0 <= held_out < 1 and validation + held_out < 1):
        raise PenjingError(f"no parts of {validation} and {held_out}", attempt="fractions that leave some to train on")
    _, first_K, group_N = np.unique(dataset.hash_N, return_index=True, return_inverse=True)
    stratum_K = dataset.stratum_N[first_K]
    part_K = np.zeros(len(first_K), np.int8)
    key_K = np.array([_mixed(int(value), seed) for value in dataset.hash_N[first_K]], np.uint64)
    for stratum in np.unique(stratum_K):
        member_K = np.flatnonzero(stratum_K == stratum)
        member_K = member_K[np.argsort(key_K[member_K], kind="stable")]
        # which of two neighbouring counts a class gets is drawn too: many small classes still add up
        dither = _mixed(int(stratum) + 1, seed + 1) / 2**64
        ends = np.floor(np.cumsum([held_out, validation]) * len(member_K) + dither).astype(int)
        if len(member_K) >= 3:
            least = np.array([1 if held_out else 0, (1 if held_out else 0) + (1 if validation else 0)])
            ends = np.minimum(np.maximum(ends, least), len(member_K) - 1)
        ends = np.minimum(ends, len(member_K) - 1)  # training never loses a class
        part_K[member_K[: ends[0]]] = 2
        part_K[member_K[ends[0] : ends[1]]] = 1
    part_N = part_K[group_N]
    parts = [Part(dataset, np.flatnonzero(part_N == number)) for number in range(3)]
    for name, part, wanted in zip(
        ("training", "validation", "held-out"), parts, (1, validation, held_out), strict=True
    ):
        if wanted and not len(part):
            where = f"{len(dataset)} records, {len(first_K)} different ones"
            raise PenjingError(f"too few records for a {name} part", where=where, attempt="more data, or a larger part")
    return Splits(*parts)


def _mixed(value: int, seed: int) -> int:
    digest = hashlib.blake2b(value.to_bytes(8, "little") + seed.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
