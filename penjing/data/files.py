"""Data files to rows, one after the other or any by its offset, without holding the file.

Each reader's `scan` gives (offset, line, row or what is wrong with it, whether its bytes were no UTF-8); `at` reads the
row at an offset again. A reader holds one row at a time (of Parquet one row group; a .json list is read whole).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from penjing.data.records import Row
from penjing.data.text import BLOCK_CHARS, SUFFIXES, bom_encoding
from penjing.errors import PenjingError
from penjing.files import os_error

#: a longer line is no record but a file of another kind, and is not read into memory
MOST_LINE_BYTES: Final = 1 << 26
MOST_JSON_BYTES: Final = 1 << 30


class Scanned(NamedTuple):
    offset: int
    line: int
    row: Row | None
    problem: str = ""
    recoded: bool = False


class Reader(Protocol):
    def scan(self) -> Iterator[Scanned]: ...
    def at(self, offset: int) -> Row: ...


def reader(path: Path, encoding: str = "utf-8", columns: Sequence[str] = ()) -> Reader:
    """By the file's suffix. columns: those that were named, to know whether a CSV file's first line is a header."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines(path, encoding)
    if suffix in (".csv", ".tsv"):
        return Csv(path, encoding, columns)
    if suffix == ".json":
        return JsonFile(path, encoding)
    if suffix == ".parquet":
        return Parquet(path)
    if suffix in SUFFIXES:
        return Text(path, encoding)
    raise PenjingError("an unknown kind of file", where=str(path), attempt=", ".join(DATA_SUFFIXES + SUFFIXES))


DATA_SUFFIXES: Final = (".jsonl", ".ndjson", ".csv", ".tsv", ".json", ".parquet")


class _Lines:
    """Lines of a file with their offsets, decoded. What is not in its encoding is read as Windows-1252 and marked."""

    def __init__(self, path: Path, encoding: str, offset: int = 0) -> None:
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise os_error(error, path) from error
        if offset == 0:
            _check_bytes(path, encoding, self._file.peek(4)[:4])
            offset = 3 if self._file.peek(3)[:3] == b"\xef\xbb\xbf" else 0
        self._file.seek(offset)
        self._encoding = encoding
        self.offset, self.line, self.recoded, self.too_long = offset, 0, False, False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        content = self._file.readline(MOST_LINE_BYTES)
        if not content:
            self._file.close()
            raise StopIteration
        self.too_long = len(content) == MOST_LINE_BYTES and not content.endswith(b"\n")
        self.offset += len(content)
        self.line += 1
        while self.too_long and (rest := self._file.readline(MOST_LINE_BYTES)):
            self.offset += len(rest)
            if rest.endswith(b"\n"):
                break
        try:
            return content.decode(self._encoding)
        except UnicodeDecodeError:
            self.recoded = True
            try:
                return content.decode("cp1252")
            except UnicodeDecodeError:
                return content.decode("latin-1")  # five bytes that Windows-1252 does not use

    def close(self) -> None:
        self._file.close()


def _check_bytes(path: Path, encoding: str, first: bytes) -> None:
    try:
        if "a\n".encode(encoding) != b"a\n":
            raise LookupError
    except LookupError as error:
        attempt = "utf-8, latin-1, cp1252, …; others: convert with iconv"
        raise PenjingError(
            f"encoding {encoding!r} cannot be read by lines", where=str(path), attempt=attempt
        ) from error
    found = bom_encoding(first)
    if found not in (None, "utf-8"):
        raise PenjingError(
            f"this is {found}", where=str(path), attempt=f"convert it: iconv -f {found} -t utf-8 {path.name}"
        )


class JsonLines:
    def __init__(self, path: Path, encoding: str) -> None:
        self._path, self._encoding = path, encoding

    def scan(self) -> Iterator[Scanned]:
        lines = _Lines(self._path, self._encoding)
        start = lines.offset
        for text in lines:
            if text.strip():
                row, problem = (None, "line too long") if lines.too_long else _json_row(text)
                yield Scanned(start, lines.line, row, problem, lines.recoded)
            start, lines.recoded = lines.offset, False

    def at(self, offset: int) -> Row:
        lines = _Lines(self._path, self._encoding, offset)
        row, problem = _json_row(next(lines, ""))
        lines.close()
        if row is None:
            raise _changed(self._path, problem)
        return row


def _json_row(text: str) -> tuple[Row | None, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None, "broken line"
    if isinstance(found, str):
        return {"text": found}, ""
    return (found, "") if isinstance(found, dict) else (None, "not a record")


class Csv:
    """Comma, semicolon, tab or bar; quoted cells may hold lines. Without a header, columns are "1", "2", …"""

    def __init__(self, path: Path, encoding: str, columns: Sequence[str]) -> None:
        self._path, self._encoding = path, encoding
        lines = _Lines(path, encoding)
        sample = "".join(line for line, _ in zip(lines, range(50), strict=False))
        lines.close()
        self._dialect = _dialect(path, sample)
        first = next(csv.reader(io.StringIO(sample, newline=""), **self._dialect), [])
        numbered = bool(columns) and all(name.isdecimal() for name in columns) and not set(columns) <= set(first)
        self.header = (
            [str(number + 1) for number in range(len(first))] if numbered else [name.strip() for name in first]
        )
        self._first = not numbered

    def scan(self) -> Iterator[Scanned]:
        lines = _Lines(self._path, self._encoding)
        rows = csv.reader(lines, **self._dialect)
        skip = self._first
        while True:
            start, line, lines.recoded = lines.offset, lines.line + 1, False
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error:
                yield Scanned(start, line, None, "broken line", lines.recoded)
                rows = csv.reader(lines, **self._dialect)
                continue
            if skip or not cells:
                skip = False
                continue
            row, problem = self._row(cells)
            yield Scanned(start, line, row, problem, lines.recoded)

    def _row(self, cells: list[str]) -> tuple[Row | None, str]:
        if len(cells) > len(self.header):
            return None, "more cells than columns"
        if len(cells) < len(self.header):
            return None, "fewer cells than columns"
        return dict(zip(self.header, cells, strict=True)), ""

    def at(self, offset: int) -> Row:
        lines = _Lines(self._path, self._encoding, offset)
        try:
            row, problem = self._row(next(csv.reader(lines, **self._dialect), []))
        except csv.Error:
            row, problem = None, "broken line"
        lines.close()
        if row is None:
            raise _changed(self._path, problem)
        return row


def _dialect(path: Path, sample: str) -> dict[str, Any]:
    """The delimiter that the header uses most; a tab in .tsv, whose quotes are characters unless one opens a line."""
    csv.field_size_limit(MOST_LINE_BYTES)
    header = sample.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=header.count)
    quoted = delimiter != "\t" or any(line.startswith('"') and '"\t' in line for line in sample.splitlines())
    return {"delimiter": delimiter, "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, "strict": quoted}


class JsonFile:
    """A list of records, or an object of them by name. It is read whole."""

    def __init__(self, path: Path, encoding: str) -> None:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise PenjingError("too large to be read whole", where=str(path), attempt="JSON lines: jq -c '.[]'")
        try:
            found = json.loads(path.read_bytes().decode(encoding if encoding != "utf-8" else "utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise PenjingError(f"broken JSON: {error}", where=str(path), attempt="repair it, or JSON lines") from error
        if isinstance(found, dict):
            lists = [value for value in found.values() if isinstance(value, list)]
            records = all(isinstance(value, dict) for value in found.values())
            found = list(found.values()) if records else lists[0] if len(lists) == 1 else found
        if not isinstance(found, list):
            raise PenjingError("no list of records", where=str(path), attempt="a list, or JSON lines")
        self._rows = found

    def scan(self) -> Iterator[Scanned]:
        for number, row in enumerate(self._rows):
            if isinstance(row, dict):
                yield Scanned(number, number + 1, row)
            elif isinstance(row, str):
                yield Scanned(number, number + 1, {"text": row})
            else:
                yield Scanned(number, number + 1, None, "not a record")

    def at(self, offset: int) -> Row:
        row = self._rows[offset]
        return {"text": row} if isinstance(row, str) else row


class Parquet:
    """Rows by number; one row group at a time is held."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as arrow
            from pyarrow import parquet
        except ImportError as error:
            attempt = "pip install 'penjing[fit]'"
            raise PenjingError("Parquet needs pyarrow", where=str(path), attempt=attempt) from error
        try:
            self._file = parquet.ParquetFile(path)
        except (arrow.ArrowException, OSError) as error:
            raise PenjingError(f"broken Parquet: {error}", where=str(path), attempt="copy it again") from error
        self._ends: list[int] = []
        for group in range(self._file.num_row_groups):
            self._ends.append((self._ends or [0])[-1] + self._file.metadata.row_group(group).num_rows)
        self._group = lru_cache(maxsize=1)(self._file.read_row_group)

    def scan(self) -> Iterator[Scanned]:
        number = 0
        for batch in self._file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield Scanned(number, number + 1, row)
                number += 1

    def at(self, offset: int) -> Row:
        group = next(index for index, end in enumerate(self._ends) if offset < end)
        start = self._ends[group - 1] if group else 0
        found: Row = self._group(group).slice(offset - start, 1).to_pylist()[0]
        return found


class Text:
    """Blocks of paragraphs, none of them much longer than `BLOCK_CHARS` bytes; joined, they are the text."""

    def __init__(self, path: Path, encoding: str) -> None:
        self._path, self._encoding = path, encoding

    def scan(self) -> Iterator[Scanned]:
        lines = _Lines(self._path, self._encoding)
        held: list[str] = []
        offset, first, size = lines.offset, 1, 0
        for text in lines:
            if lines.too_long:
                yield Scanned(offset, lines.line, None, "line too long")
                offset, first, held, size = lines.offset, lines.line + 1, [], 0
                continue
            held.append(text)
            size += len(text)
            if size >= 2 * BLOCK_CHARS or (size >= BLOCK_CHARS and not text.strip()):
                yield self._block(offset, first, held, lines)
                offset, first, held, size = lines.offset, lines.line + 1, [], 0
        if held:
            yield self._block(offset, first, held, lines)

    def _block(self, offset: int, line: int, held: list[str], lines: _Lines) -> Scanned:
        text, recoded = _newlines("".join(held)), lines.recoded
        lines.recoded = False
        zero = "a zero character: not text" if "\0" in text else ""
        return Scanned(offset, line, None if zero else {"text": text}, zero, recoded)

    def at(self, offset: int) -> Row:
        lines = _Lines(self._path, self._encoding, offset)
        held: list[str] = []
        size = 0
        for text in lines:
            held.append(text)
            size += len(text)
            if size >= 2 * BLOCK_CHARS or (size >= BLOCK_CHARS and not text.strip()):
                break
        lines.close()
        return {"text": _newlines("".join(held))}


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _changed(path: Path, problem: str) -> PenjingError:
    return PenjingError(f"the data changed: {problem}", where=str(path), attempt="open it again")
