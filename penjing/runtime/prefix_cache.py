"""Prompts that begin alike are evaluated once: what they left in the cache is kept in files, over restarts.

A folder keeps the last few prompts of each model and adapter; a file keeps one. A prompt takes what it shares with the
best of them (a system message, a document) and evaluates the rest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.files import os_error
from penjing.format.safetensors_file import SafetensorsFile
from penjing.runtime.prefix import FORMAT, VERSION, least_length
from penjing.runtime.session import Session

SUFFIX: Final = ".prefix"
#: evaluating fewer tokens is quicker than it is worth a file
LEAST_TOKENS: Final = 64
#: of one model and adapter in a folder; the ones not used for longest go
MOST_FILES: Final = 16

Tell = Callable[[str], None]


class PrefixCache:
    """`path`: a folder (there, or named with a / at its end) or a file. `tell` hears what happened, in a sentence."""

    def __init__(self, path: str | Path, *, tell: Tell | None = None) -> None:
        self._path = Path(path)
        self._is_folder = self._path.is_dir() or str(path).endswith(("/", os.sep))
        self._tell: Tell = tell or (lambda text: None)

    def restore(self, session: Session, prompt: Sequence[int]) -> list[int]:
        """Make the session hold what shares most with the prompt, if that is worth it; what it holds then.

        Raises PenjingError where `path` is a file of something else, which is then left alone.
        """
        found = self._best(session, np.asarray(prompt, np.int64))
        if found is None:
            return session.tokens()
        path, shared = found
        try:
            held = session.load_prefix(path)
            os.utime(path)  # used now
        except PenjingError as error:
            self._tell(f"{path}: {error.fact}; it will be made again")
            return session.tokens()
        self._tell(f"{shared} of {len(prompt)} tokens of the prompt come from {path}")
        return held

    def keep(self, session: Session, evaluated: int) -> None:
        """Save what the session holds if that took evaluating enough tokens."""
        if evaluated < LEAST_TOKENS:
            return
        path = self._place(session)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise os_error(error, path.parent) from error
        session.save_prefix(path)
        self._tell(f"{session.length} tokens kept in {path}")
        if self._is_folder:
            for old in self._files(session)[MOST_FILES:]:
                old.unlink(missing_ok=True)

    def _best(self, session: Session, prompt: NDArray[np.int64]) -> tuple[Path, int] | None:
        """The file that shares most with the prompt, and how many tokens that is."""
        best: tuple[Path, int] | None = None
        already = _shared(np.asarray(session.tokens(), np.int64), prompt)
        already = already if _can_be_cut(already, prompt, session.least_length()) else 0
        for path in self._files(session):
            shared = self._shared_with(path, session, prompt)
            if shared - already >= LEAST_TOKENS and (best is None or shared > best[1]):
                best = path, shared
        return best

    def _shared_with(self, path: Path, session: Session, prompt: NDArray[np.int64]) -> int:
        try:
            with SafetensorsFile(path) as file:
                ours = file.metadata.get("format") == FORMAT
                fits = file.metadata.get("identity") == session.prefix_identity()
                fits = fits and file.metadata.get("version") == VERSION
                least = least_length(file.metadata)
                tokens = file.raw("tokens").astype(np.int64) if "tokens" in file.tensors else np.empty(0, np.int64)
        except PenjingError as error:
            if not self._is_folder and not _begins_like_a_prefix(path):
                raise _not_ours(path) from error
            self._tell(f"{path}: {error.fact}; it will be made again")
            return 0
        if not ours:
            raise _not_ours(path)
        if not fits or tokens.ndim != 1 or len(tokens) > session.context:
            fact = "is of another model, adapter, kind of cache, context or version of penjing"
            self._tell(f"{path} {fact}; it will be made again")
            return 0
        shared = _shared(tokens, prompt)
        if _can_be_cut(shared, prompt, least):
            return shared
        if shared >= LEAST_TOKENS:
            fact = f"{path} shares {shared} tokens with the prompt"
            self._tell(f"{fact}, but layers with a window can go on from {least} tokens or more")
        return 0

    def _files(self, session: Session) -> list[Path]:
        """Files to look at, the last used first."""
        if not self._is_folder:
            return [self._path] if self._path.exists() else []
        found = list(self._path.glob(f"{_short(session.prefix_identity())}-*{SUFFIX}"))
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)

    def _place(self, session: Session) -> Path:
        if not self._is_folder:
            return self._path
        tokens = np.asarray(session.tokens(), np.int32).tobytes().hex()
        return self._path / f"{_short(session.prefix_identity())}-{_short(tokens)}{SUFFIX}"


def _shared(tokens: NDArray[np.int64], prompt: NDArray[np.int64]) -> int:
    most = min(len(tokens), len(prompt))
    differ = np.flatnonzero(tokens[:most] != prompt[:most])
    return int(differ[0]) if len(differ) else most


def _can_be_cut(shared: int, prompt: NDArray[np.int64], least: int) -> bool:
    """Whether what is shared can be gone on from. The prompt's last token is evaluated anyway."""
    return least <= min(shared, len(prompt) - 1)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _begins_like_a_prefix(path: Path) -> bool:
    """A damaged prefix may be replaced, somebody's text may not."""
    try:
        with path.open("rb") as file:
            return f'"format":"{FORMAT}"'.encode() in file.read(4096)
    except OSError:
        return False


def _not_ours(path: Path) -> PenjingError:
    return PenjingError("the file is no saved prefix", where=str(path), attempt="another name for --prefix-cache")
