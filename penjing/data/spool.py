"""Examples on the disk, so that what is learned from may be larger than memory.

The file has no name: it goes with the process. What stays in memory is where each example lies, 16 bytes.

Shapes: T tokens of an example.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, overload

import numpy as np

from penjing.data.encode import Example
from penjing.files import os_error

_NO_LABEL: Final = -1


class Spool(Sequence[Example]):
    """Examples in the order in which they were added, each read when it is asked for; `left_out` is not kept.

    They lie in TMPDIR, 5 bytes a token. Raises PenjingError where that is full.
    """

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="penjing-")  # noqa: SIM115  # closed with the last reference
        except OSError as error:
            raise os_error(error, Path(tempfile.gettempdir())) from error
        self._start, self._label = array("Q", [0]), array("q")

    def extend(self, examples: Iterable[Example]) -> None:
        for example in examples:
            token = np.ascontiguousarray(example.token_T, "<i4").tobytes()
            target = np.ascontiguousarray(example.target_T, np.bool_).tobytes()
            self._write(token + target)
            self._start.append(self._start[-1] + len(token) + len(target))
            self._label.append(_NO_LABEL if example.label is None else example.label)

    def __len__(self) -> int:
        return len(self._label)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        chosen = range(len(self))[index]
        return self._read(chosen) if isinstance(chosen, int) else [self._read(at) for at in chosen]

    def _write(self, content: bytes) -> None:
        try:
            self._file.write(content)
        except OSError as error:
            raise os_error(error, Path(tempfile.gettempdir())) from error

    def _read(self, at: int) -> Example:
        start, end = self._start[at], self._start[at + 1]
        try:
            self._file.flush()
            content = os.pread(self._file.fileno(), end - start, start)
        except OSError as error:
            raise os_error(error, Path(tempfile.gettempdir())) from error
        size = (end - start) // 5
        label = self._label[at]
        token_T, target_T = np.frombuffer(content, "<i4", size), np.frombuffer(content, np.bool_, size, 4 * size)
        return Example(token_T, target_T, None if label == _NO_LABEL else label)
