"""What is wrong with data: counted, and named by file and line. Nothing is left out without being counted here."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Final

from penjing.errors import PenjingError

#: lines that are kept by number; more are counted only, so that a broken file of any size fits in memory
MOST_LINES: Final = 10_000
#: problems of rows that are used all the same
_KEPT: Final = frozenset({"not UTF-8, read as Windows-1252", "repeats an earlier record", "longer than fits, cut"})


class Problems:
    """Kinds of problems, how often, and where."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)
        self._counts: dict[str, int] = {}
        self._lines: dict[str, array[int]] = {}

    def add(self, kind: str, file: int, line: int) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        kept = self._lines.setdefault(kind, array("Q"))
        if len(kept) < 2 * MOST_LINES:
            kept.extend((file, line))

    def __len__(self) -> int:
        return sum(self._counts.values())

    @property
    def counts(self) -> dict[str, int]:
        return dict(sorted(self._counts.items()))

    @property
    def left_out(self) -> int:
        """Rows that are not among the records."""
        return sum(count for kind, count in self._counts.items() if kind not in _KEPT)

    def lines(self, kind: str) -> list[tuple[str, int]]:
        """File and line of the first `MOST_LINES` of a kind."""
        kept = self._lines.get(kind, array("Q"))
        return [(self._files[kept[at]], kept[at + 1]) for at in range(0, len(kept), 2)]

    def places(self, kind: str, most: int = 5) -> str:
        """As a person reads it: `train.csv line 3, 17, 18 and 4 more`."""
        found, total = self.lines(kind), self._counts.get(kind, 0)
        said, last = [], ""
        for file, line in found[:most]:
            said.append(f"{line}" if file == last else f"{file} line {line}")
            last = file
        return ", ".join(said) + (f" and {total - most} more" if total > most else "")

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "problem": kind,
                "count": count,
                "left_out": kind not in _KEPT,
                "lines": [{"file": file, "line": line} for file, line in self.lines(kind)[:100]],
            }
            for kind, count in self.counts.items()
        ]

    def refuse(self) -> None:
        """Raise PenjingError if there are any."""
        if not len(self):
            return
        said = "; ".join(f"{count} × {kind}" for kind, count in self.counts.items())
        where = "; ".join(self.places(kind) for kind in self.counts)
        raise PenjingError(f"problems in the data: {said}", where=where, attempt="repair them, or go without --strict")
