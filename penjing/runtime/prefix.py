"""The beginning of a text, evaluated once and kept in a file: tokens and what they left in the cache.

A safetensors file: `tokens` I32 [T] and `state` U8, the engine's bytes (see pj_session_export). Its `__metadata__`:
`format`, `version`, `identity` (of the model and of whatever else the state depends on), `least` (the fewest tokens,
none apart, that the prefix can be cut to: layers with a window keep little more than that) and `digest` (sha256 of
identity, tokens, state and least).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.format.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec

FORMAT: Final = "penjing-prefix"
VERSION: Final = "3"
_INT32_MAX: Final = int(np.iinfo(np.int32).max)
_AGAIN: Final = "evaluate the text again and save it"


class Prefix(NamedTuple):
    tokens: NDArray[np.int32]  # [T]
    state: NDArray[np.uint8]  # [bytes]
    least: int


def write_prefix(path: str | Path, prefix: Prefix, *, identity: str) -> None:
    """Write the file atomically; the same input gives the same bytes."""
    metadata = {"format": FORMAT, "version": VERSION, "identity": identity, "least": str(prefix.least)}
    metadata["digest"] = _digest(identity, prefix)
    specs = {
        "tokens": TensorSpec("I32", prefix.tokens.shape),
        "state": TensorSpec("U8", prefix.state.shape),
    }
    with SafetensorsWriter(path, specs, metadata) as writer:
        writer.write("tokens", prefix.tokens)
        writer.write("state", prefix.state)
        writer.finish()


def read_prefix(path: str | Path, *, identity: str) -> Prefix:
    """Views into the mapped file. Raises PenjingError unless it is whole and belongs to `identity`."""
    where = str(path)
    with SafetensorsFile(path) as file:
        metadata = file.metadata
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            raise PenjingError("not a saved prefix of this version", where=where, attempt=_AGAIN)
        specs = {name: (spec.dtype, len(spec.shape)) for name, spec in file.tensors.items()}
        if specs != {"tokens": ("I32", 1), "state": ("U8", 1)}:
            raise PenjingError("a saved prefix holds tokens and state, no more", where=where, attempt=_AGAIN)
        if metadata.get("identity") != identity:
            fact = "the prefix was saved by another model, adapter, kind of cache or version of penjing"
            raise PenjingError(fact, where=where, attempt=_AGAIN)
        prefix = Prefix(file.raw("tokens"), file.raw("state"), least_length(metadata))
        if metadata.get("digest") != _digest(identity, prefix):
            raise PenjingError("the saved prefix is damaged", where=where, attempt=_AGAIN)
        return prefix


def least_length(metadata: Mapping[str, str]) -> int:
    """What a file says its prefix can be cut to; where it says nothing of the kind, more than any prefix has."""
    text = metadata.get("least", "")
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else _INT32_MAX


def _digest(identity: str, prefix: Prefix) -> str:
    import hashlib  # see Model.digest

    digest = hashlib.sha256(identity.encode())
    digest.update(f"\n{prefix.least}".encode())
    for array in (prefix.tokens, prefix.state):
        piece: NDArray[Any] = np.ascontiguousarray(array)
        digest.update(f"\n{piece.size}\n".encode())
        digest.update(piece.data)
    return digest.hexdigest()
