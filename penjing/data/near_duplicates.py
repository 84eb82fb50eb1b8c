"""Records of one part that nearly repeat one of another: MinHash finds candidates (datasketch), then they are compared.

Two records are near when the sets of their shingles (three words in a row; of short texts, five characters) have a
Jaccard similarity of at least a threshold. Only the signatures of the held-out part are in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from penjing.data.records import Record
from penjing.data.splits import Part
from penjing.errors import PenjingError

THRESHOLD: Final = 0.8
_PERMUTATIONS: Final = 128
_BATCH: Final = 256
_SHORT_WORDS: Final = 24


@dataclass(frozen=True)
class Near:
    """Indices within each part, and how similar they are, 0 to 1."""

    train: int
    held_out: int
    similarity: float


def shingles(record: Record) -> set[bytes]:
    text = " ".join(record.parts()).casefold()
    words = re.findall(r"\w+", text)
    if len(words) >= _SHORT_WORDS:
        return {" ".join(words[at : at + 3]).encode() for at in range(len(words) - 2)}
    joined = " ".join(words)
    return {joined[at : at + 5].encode("utf-8", "surrogatepass") for at in range(max(1, len(joined) - 4))}


def near_duplicates(
    train: Part,
    held_out: Part,
    *,
    threshold: float = THRESHOLD,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Near]:
    """Records of `train` that are near one of `held_out`, each with its nearest.

    Raises PenjingError where datasketch is not installed.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise PenjingError("near-duplicates need datasketch", attempt="pip install 'penjing[fit]'") from error
    report = progress or (lambda what, done, of: None)
    # candidates are compared in any case: rather too many than too few
    index = MinHashLSH(threshold=min(threshold, 0.9), num_perm=_PERMUTATIONS, weights=(0.1, 0.9))

    def batches(part: Part, what: str) -> Any:
        """Numbers, shingles and signatures of a part's records; those with the same shingles share a signature."""
        records, start = part.records(), 0
        while batch := [shingles(record) for record in islice(records, _BATCH)]:
            signatures = MinHash.bulk([sorted(one) for one in batch], num_perm=_PERMUTATIONS)
            for number, (one, signature) in enumerate(zip(batch, signatures, strict=True), start):
                yield number, one, signature
            start += len(batch)
            report(what, start, len(part))

    for number, _, signature in batches(held_out, "held-out signatures"):
        index.insert(number, signature)
    found = []
    for number, mine, signature in batches(train, "near-duplicates"):
        candidates = sorted(index.query(signature))
        scores = [(_jaccard(mine, shingles(held_out[other])), -other) for other in candidates]
        if scores and max(scores)[0] >= threshold:
            similarity, other = max(scores)
            found.append(Near(number, -other, similarity))
    return found


def _jaccard(one: set[bytes], other: set[bytes]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0
