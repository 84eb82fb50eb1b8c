"""Tokens in, logits out: a model with its cache of keys and values, in the engine."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.evidence import num_cores
from penjing.format.architecture import Architecture
from penjing.format.container import TOKENIZER, Container, open_container
from penjing.format.pack import Layout
from penjing.runtime import binding
from penjing.runtime.model import Model

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

KvKind = Literal["f16", "f32"]
_INT32: Final = np.iinfo(np.int32)


class Session:
    """One conversation. All memory it ever needs is allocated when it opens.

    `context`: how many tokens it can hold. `threads`: all CPUs that this process may use by default; the results do
    not depend on it. `kv`: how keys and values are kept.
    Methods may be called from any thread; calls of one session wait for each other, except `cancel`.
    """

    def __init__(
        self,
        container: Container | str | Path,
        *,
        context: int = 2048,
        threads: int | None = None,
        kv: KvKind = "f16",
    ) -> None:
        opened = container if isinstance(container, Container) else open_container(container)
        tensors = {name: opened.tensor(name) for name in opened.tensors if name != TOKENIZER}
        where = str(opened.path)
        self._open(opened.architecture, opened.layouts, tensors, context, threads, kv, where, opened.check_unchanged)

    @classmethod
    def from_tensors(
        cls,
        architecture: Architecture,
        layouts: Mapping[str, Layout],
        tensors: Mapping[str, NDArray[Any]],
        *,
        context: int = 2048,
        threads: int | None = None,
        kv: KvKind = "f16",
        where: str = "model",
    ) -> Self:
        """A session over arrays in memory: `tensors` as `Model` takes them. They must not change while it is open."""
        session = cls.__new__(cls)
        session._open(architecture, layouts, tensors, context, threads, kv, where, lambda: None)
        return session

    def _open(
        self,
        architecture: Architecture,
        layouts: Mapping[str, Layout],
        tensors: Mapping[str, NDArray[Any]],
        context: int,
        threads: int | None,
        kv: KvKind,
        where: str,
        check_unchanged: Callable[[], None],
    ) -> None:
        self._handle = ctypes.c_void_p()
        self._work = threading.Lock()  # held by whoever uses the engine
        self._life = threading.Lock()  # held while the handle is looked at by cancel(), or given up
        self._process = os.getpid()
        self._where = where
        self._check_unchanged = check_unchanged
        self._context, self._threads = context, num_cores() if threads is None else threads
        self._vocab_size = architecture.vocab_size
        if kv not in ("f16", "f32"):
            raise PenjingError(f"keys and values of kind {kv!r}", where=where, attempt="f16 or f32")
        for name, value in (("context", self._context), ("threads", self._threads)):
            if not 1 <= value <= _INT32.max:
                raise PenjingError(f"{name} is {value}", where=where, attempt=f"{name} of at least 1")
        self._model = Model(architecture, layouts, tensors, where=where)
        create = binding.library().pj_session_create
        status = create(self._model.handle, self._context, self._threads, binding.KINDS[kv], ctypes.byref(self._handle))
        binding.check(status, where=where)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def context(self) -> int:
        """How many tokens it can hold."""
        return self._context

    @property
    def threads(self) -> int:
        return self._threads

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        with self._work:
            return int(binding.library().pj_session_length(self._open_handle()))

    @property
    def nbytes(self) -> int:
        """Bytes of cache and buffers; the model's own are not counted."""
        with self._work:
            return int(binding.library().pj_session_bytes(self._open_handle()))

    def forward(self, tokens: Sequence[int] | NDArray[np.integer[Any]], num_logits: int = 1) -> NDArray[np.float32]:
        """Append tokens; logits of the last `num_logits` of them, float32 [num_logits, vocab_size].

        Raises PenjingError (an EngineError where the engine refused), and then the session is as before.
        """
        token_T = self._checked(tokens)
        if not 0 <= num_logits <= len(token_T):
            raise PenjingError(f"{num_logits} logits wanted of {len(token_T)} tokens", where=self._where)
        logits = np.empty((num_logits, self._vocab_size), np.float32)
        with self._work:
            handle = self._open_handle()
            self._check_unchanged()
            forward = binding.library().pj_forward
            status = forward(
                handle, binding.pointer(token_T), len(token_T), binding.pointer(logits), num_logits
            )  # lets other Python threads run
            binding.check(status, where=self._where)
        return logits

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        with self._work:
            handle = self._open_handle()
            if not 0 <= length <= _INT32.max:
                raise PenjingError(f"cannot keep {length} tokens", where=self._where)
            binding.check(binding.library().pj_session_truncate(handle, length), where=self._where)

    def cancel(self) -> None:
        """From any thread: a `forward` under way raises EngineError with status CANCELLED. Else nothing happens."""
        with self._life:
            if self._handle:
                binding.library().pj_session_cancel(self._handle)

    def close(self) -> None:
        """Free everything; waits for a `forward` under way. Closing twice is fine."""
        with self._work, self._life:
            handle, self._handle = self._handle, ctypes.c_void_p()
            if handle and self._process == os.getpid():  # a forked child has the memory, but not the threads
                binding.library().pj_session_free(handle)
            self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_model"):  # else opening it failed
            self.close()

    def _open_handle(self) -> ctypes.c_void_p:
        if not self._handle:
            raise PenjingError("the session is closed", where=self._where, attempt="open another")
        if self._process != os.getpid():
            raise PenjingError("the session was opened before a fork", where=self._where, attempt="open one here")
        return self._handle

    def _checked(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """Tokens as the engine reads them. Raises PenjingError unless they are integers of the vocabulary."""
        token_T = np.asarray(tokens)
        if token_T.size == 0 or token_T.ndim != 1:
            raise PenjingError(f"no tokens: shape {token_T.shape}", where=self._where, attempt="at least one token")
        if token_T.dtype.kind not in "iu":
            raise PenjingError(f"tokens must be integers, not {token_T.dtype}", where=self._where)
        outside = (token_T < 0) | (token_T >= self._vocab_size)
        if outside.any():
            number = int(outside.argmax())
            fact = f"token {token_T[number]} (number {number}) is outside the vocabulary of {self._vocab_size}"
            raise PenjingError(fact, where=self._where, attempt="the tokenizer that belongs to the model")
        return np.ascontiguousarray(token_T, dtype=np.int32)
