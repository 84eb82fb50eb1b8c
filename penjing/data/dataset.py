"""Open data, whatever it is in, and read its records from the disk as they are wanted.

Opening reads everything once: it finds the kind, what is wrong where, labels, repeats and the digest. What stays in
memory is an index of 32 bytes a record; a record's text is read again from its offset when it is asked for, so data may
be larger than memory.

Shapes: N records.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penjing.data.files import DATA_SUFFIXES, Reader, Scanned, reader
from penjing.data.problems import Problems
from penjing.data.records import BadRowError, Columns, Meaning, Record, recognise
from penjing.data.text import SUFFIXES
from penjing.errors import PenjingError
from penjing.files import os_error

#: rows that are looked at to recognise the kind
LOOKED_AT: Final = 200
#: files of a folder with such names are parts that must not be mixed
_SPLITS: Final = ("train", "test", "valid", "validation", "val", "dev", "eval")


class Dataset:
    """Records of one kind. `hash_N`: of each record's content, equal for repeats. Of classification: `labels`, sorted;
    `combinations` of them that occur, and `stratum_N`, the combination of each record."""

    def __init__(self, files: Sequence[Path], readers: Sequence[Reader], meaning: Meaning) -> None:
        self.files = tuple(files)
        self.kind: str = meaning.kind
        self.columns: Columns = meaning.columns
        self.problems = Problems([file.name for file in files])
        self._readers, self._meaning = readers, meaning
        self._stamps = [_stamp(file) for file in files]
        self._digests = [_digest(file) for file in files]
        self._labels: dict[tuple[str, ...], int] = {}
        self._index()
        self.check_unchanged()

    def _index(self) -> None:
        file_N, line_N, offset_N, hash_N, label_N = array("I"), array("Q"), array("Q"), array("Q"), array("I")
        for number, found in enumerate(self._readers):
            for scanned in found.scan():
                if scanned.recoded:
                    self.problems.add("not UTF-8, read as Windows-1252", number, scanned.line)
                record = self._understood(number, scanned)
                if record is None:
                    continue
                file_N.append(number)
                line_N.append(scanned.line)
                offset_N.append(scanned.offset)
                hash_N.append(content_hash(record))
                label_N.append(self._labels.setdefault(record.labels, len(self._labels)))
        self._file_N, self._line_N = np.asarray(file_N, np.uint32), np.asarray(line_N, np.uint64)
        self._offset_N, self.hash_N = np.asarray(offset_N, np.uint64), np.asarray(hash_N, np.uint64)
        self._note_repeats()
        self._sort_labels(np.asarray(label_N, np.uint32))
        if not len(self):
            said = "; ".join(f"{count} × {kind}" for kind, count in self.problems.counts.items())
            where = ", ".join(map(str, self.files))
            raise PenjingError(f"no records: {said or 'nothing there'}", where=where, attempt="data with records")

    def _understood(self, file: int, scanned: Scanned) -> Record | None:
        problem = scanned.problem
        if scanned.row is not None:
            try:
                return self._meaning.record(scanned.row, self.files[file].name, scanned.line)
            except BadRowError as error:
                problem = str(error)
        self.problems.add(problem, file, scanned.line)
        return None

    def _note_repeats(self) -> None:
        order_N = np.argsort(self.hash_N, kind="stable")
        same_N = self.hash_N[order_N][1:] == self.hash_N[order_N][:-1]
        for index in np.sort(order_N[1:][same_N]):
            self.problems.add("repeats an earlier record", int(self._file_N[index]), int(self._line_N[index]))

    def _sort_labels(self, label_N: NDArray[np.uint32]) -> None:
        """Combinations of labels, numbered as they sort: so that the order of rows changes no number."""
        combinations = sorted(self._labels, key=lambda names: [_natural(name) for name in names])
        rank = {names: at for at, names in enumerate(combinations)}
        new_C = np.array([rank[names] for names in self._labels], np.int64)
        self.combinations = tuple(combinations)
        self.stratum_N = new_C[label_N] if len(label_N) else np.zeros(0, np.int64)
        self.labels = tuple(sorted({name for names in self._labels for name in names}, key=_natural))
        self._number = {name: at for at, name in enumerate(self.labels)}

    def __len__(self) -> int:
        return len(self._offset_N)

    def __getitem__(self, index: int) -> Record:
        file = int(self._file_N[index])
        self._check_stamp(file)
        row = self._readers[file].at(int(self._offset_N[index]))
        try:
            return self._meaning.record(row, self.files[file].name, int(self._line_N[index]))
        except BadRowError as error:
            raise PenjingError(f"the data changed: {error}", where=str(self.files[file])) from error

    def records(self, indices: Iterable[int] | None = None) -> Iterator[Record]:
        """Some of the records, or all of them, one at a time."""
        for index in range(len(self)) if indices is None else indices:
            yield self[int(index)]

    def label_ids(self, record: Record) -> tuple[int, ...]:
        """Numbers of a record's labels among `labels`."""
        return tuple(self._number[name] for name in record.labels)

    def place(self, index: int) -> tuple[str, int]:
        return self.files[int(self._file_N[index])].name, int(self._line_N[index])

    def note(self, problem: str, record: Record) -> None:
        """Count what a later step found, such as an example that had to be cut."""
        names = [file.name for file in self.files]
        self.problems.add(problem, names.index(record.file), record.line)

    @cached_property
    def digest(self) -> str:
        """sha256 over the bytes of all files and how they were understood."""
        total = hashlib.sha256(f"{self.kind} {sorted(self.columns.items())} {self._meaning!r}".encode())
        for digest in self._digests:
            total.update(digest.encode())
        return total.hexdigest()

    def check_unchanged(self) -> None:
        """Raise PenjingError if a file is no longer what was opened."""
        for file in range(len(self.files)):
            self._check_stamp(file)

    def _check_stamp(self, file: int) -> None:
        """A file that was only touched is read again once, and its digest decides."""
        path, stamp = self.files[file], _stamp(self.files[file])
        if stamp == self._stamps[file]:
            return
        if stamp[0] != self._stamps[file][0] or _digest(path) != self._digests[file]:
            raise PenjingError(
                "the data changed since it was opened", where=str(path), attempt="put the old file back, or begin anew"
            )
        self._stamps[file] = stamp


def open_dataset(
    path: str | Path,
    *,
    kind: str | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    encoding: str = "utf-8",
    strict: bool = False,
    separator: str | None = None,
    label_names: Sequence[str] = (),
) -> Dataset:
    """JSON lines, CSV, JSON, Parquet, text, or a folder of one of them.

    kind: text, chat, instruction, classification, preference or pairs, by default what the columns look like. columns:
    role → column, see `records.ROLES`; of a CSV file without header their numbers, from 1. separator: between several
    labels in one cell. label_names: of labels that are numbers. strict: any problem is a PenjingError.
    """
    files = _files(Path(path).expanduser())
    named = [part for c in (columns or {}).values() for part in (c.split("+") if isinstance(c, str) else c)]
    readers = [reader(file, encoding, named) for file in files]
    rows = [s.row for found in readers for s in islice(found.scan(), LOOKED_AT) if s.row is not None]
    if not rows:
        raise PenjingError("no records", where=str(path), attempt="a file that is not empty, in one of the known forms")
    found_kind, found_columns = recognise(rows, kind, columns, str(path))
    meaning = Meaning(found_kind, found_columns, separator, tuple(label_names))
    dataset = Dataset(files, readers, meaning)
    if strict:
        dataset.problems.refuse()
    return dataset


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise PenjingError("no such data", where=str(path), attempt="a file or a folder")
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    data = [file for file in found if file.suffix.lower() in DATA_SUFFIXES]
    kinds = sorted({file.suffix.lower() for file in data})
    if len(kinds) > 1:
        attempt = f"one file, e.g. {data[0]}"
        raise PenjingError(f"a folder of {' and '.join(kinds)} files", where=str(path), attempt=attempt)
    parts = sorted(
        {split for file in data for split in _SPLITS if split in file.stem.lower().replace("-", "_").split("_")}
    )
    if len(parts) > 1:
        raise PenjingError(
            f"a folder of {' and '.join(parts)} files, which must not be mixed", where=str(path), attempt=str(data[-1])
        )
    chosen = data or [file for file in found if file.suffix.lower() in SUFFIXES]
    if not chosen:
        raise PenjingError("no data in this folder", where=str(path), attempt=", ".join(DATA_SUFFIXES + SUFFIXES))
    return chosen


def content_hash(record: Record) -> int:
    """64 bits of what a record says, spaces and case aside; labels are not part of it."""
    said = "\0".join(" ".join(part.casefold().split()) for part in record.parts())
    return int.from_bytes(hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _natural(name: str) -> tuple[int, int, str]:
    """Numbers sort by value."""
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        found = os.stat(file)
    except OSError as error:
        raise os_error(error, file) from error
    return found.st_size, found.st_mtime_ns, found.st_ino


def _digest(file: Path) -> str:
    try:
        found = hashlib.sha256()
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                found.update(block)
        return found.hexdigest()
    except OSError as error:
        raise os_error(error, file) from error
