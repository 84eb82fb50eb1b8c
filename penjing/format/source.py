"""What the formats have in common: named float tensors that are read by rows, and the texts beside them.

`hf.py` and `gguf.py` each give a `Source`; `checkpoint.py` sees only this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.files import os_error

_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class TensorInfo:
    """`dtype` is what a child of this checkpoint is written in: "F32", "F16" or "BF16"."""

    shape: tuple[int, ...]
    dtype: str


#: rows of a tensor's first axis: all, a range, or any rows in any order
Rows = slice | NDArray[np.intp] | None


class Source(Protocol):
    """An opened folder or file. Tensors carry Hugging Face's names, whatever the file calls them."""

    @property
    def path(self) -> Path: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def generation(self) -> dict[str, Any]: ...
    @property
    def tokenizer_json(self) -> str | None: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    @property
    def files(self) -> list[Path]: ...  # that hold the weights, in a fixed order
    @property
    def layouts(self) -> Mapping[str, dict[str, Any]]: ...  # canonical names whose codes are stored beside
    def read(self, tensor: str, rows: slice | None = None) -> NDArray[np.float32]: ...
    def packed(self, name: str) -> dict[str, NDArray[Any]]: ...
    def weights_digest(self) -> bytes: ...  # sha256 of the weights' bytes


def files_digest(files: Iterable[Path]) -> bytes:
    """sha256 over the sha256 of each file."""
    total = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                one = hashlib.sha256()
                while piece := stream.read(_READ_BYTES):
                    one.update(piece)
                total.update(one.digest())
        except OSError as error:
            raise os_error(error, file) from error
    return total.digest()


def row_indices(rows: Rows, num_rows: int) -> NDArray[np.intp]:
    """The rows that `rows` means in a tensor of `num_rows`."""
    if isinstance(rows, np.ndarray):
        return rows
    return np.arange(num_rows, dtype=np.intp)[rows or slice(None)]


def gather_rows(read: Callable[[slice], NDArray[Any]], index: NDArray[np.intp]) -> NDArray[Any]:
    """Rows `index` in that order, through a reader of consecutive rows: reads from the lowest to the highest."""
    if index.size == 0:
        return read(slice(0, 0))
    low = int(index.min())
    span = read(slice(low, int(index.max()) + 1))
    consecutive = len(span) == index.size and bool((np.diff(index) == 1).all())
    return span if consecutive else span[index - low]


REQUIRED: Final = object()
#: far beyond any real model; a hostile config must not fill the memory
MAX_LAYERS: Final = 4096


def integer(config: Mapping[str, Any], key: str, default: Any = REQUIRED, *, most: int = 1 << 24) -> int:
    """A count in a config; an absent or null one is `default`. PenjingError names the key."""
    value = _value(config, key, default)
    if type(value) is not int or not 0 <= value <= most:
        raise bad_key(config, key, "a whole number is needed")
    return value


def number(config: Mapping[str, Any], key: str, default: Any = REQUIRED) -> float:
    """A finite number in a config; an absent or null one is `default`. PenjingError names the key."""
    value = _value(config, key, default)
    if type(value) not in (int, float) or not abs(value) < 1e300:
        raise bad_key(config, key, "a finite number is needed")
    return float(value)


def numbers(config: Mapping[str, Any], key: str) -> list[float]:
    """A list of finite numbers in a config. PenjingError names the key."""
    values = _value(config, key, REQUIRED)
    if not isinstance(values, list):
        raise bad_key(config, key, "a list of numbers is needed")
    return [number({key: value}, key) for value in values]


def table(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table in a config; an absent or null one is empty. PenjingError names the key."""
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise bad_key(config, key, "a table is needed")
    return value or {}


def bad_key(config: Mapping[str, Any], key: str, why: str) -> PenjingError:
    """The error for a key whose value cannot be used."""
    value = repr(config.get(key))
    shown = value if len(value) <= 60 else value[:57] + "..."
    return PenjingError(
        f"{key} is {shown}: {why}",
        where=f"{key} in the model's config",
        attempt="open another model, or edit its config",
    )


def _value(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    if value is not None:
        return value
    if default is REQUIRED:
        raise PenjingError(
            f"the config has no {key}", where=f"{key} in the model's config", attempt="copy the model again, whole"
        )
    return default
