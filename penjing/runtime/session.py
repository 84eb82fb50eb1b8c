"""Tokens in, logits out: a model with its cache of keys and values, in the engine."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import penjing
from penjing.errors import PenjingError
from penjing.evidence import num_cores
from penjing.format.adapter import Adapter, read_adapter
from penjing.format.architecture import Architecture
from penjing.format.container import TOKENIZER, Container, open_container
from penjing.format.pack import Layout
from penjing.runtime import binding
from penjing.runtime.adapters import Adapters, default_name
from penjing.runtime.model import Model
from penjing.runtime.prefix import Prefix, read_prefix, write_prefix

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

KvKind = Literal["auto", "f16", "f32", "i8"]
_INT32: Final = np.iinfo(np.int32)


class Limits(NamedTuple):
    """What a session is opened with."""

    context: int
    sequences: int
    threads: int
    kv: KvKind

    def check(self, where: str) -> None:
        if self.kv not in binding.KV_KINDS:
            kinds = " or ".join(binding.KV_KINDS)
            raise PenjingError(f"keys and values of kind {self.kv!r}", where=where, attempt=kinds)
        for name in ("context", "sequences", "threads"):
            if not 1 <= (value := getattr(self, name)) <= _INT32.max:
                raise PenjingError(f"{name} is {value}", where=where, attempt=f"{name} of at least 1")


class Session:
    """Conversations with a model. All memory they ever need is allocated when it opens.

    `context`: how many tokens one can hold. `sequences`: how many there are, numbered from 0, which know nothing of
    each other; where none is named it is the first. `threads`: all CPUs that this process may use by default; the
    results do not depend on it. `kv`: how keys and values are kept. "i8" is 8-bit codes with a scale for each position
    and head: half the memory of "f16", and prompts read up to 1.3 times as fast; "auto" is that, but "f16" where keys
    have a bias, which makes a few entries so large that codes leave no steps to the others (Qwen2). A layer that sees a
    window of the text keeps little more than that, so a long text cannot be cut to any length, see `least_length`.
    Methods may be called from any thread; calls of one session wait for each other, except `cancel`.
    """

    def __init__(
        self,
        container: Container | str | Path,
        *,
        context: int = 2048,
        sequences: int = 1,
        threads: int | None = None,
        kv: KvKind = "f16",
    ) -> None:
        opened = container if isinstance(container, Container) else open_container(container)
        tensors = {name: opened.tensor(name) for name in opened.tensors if name != TOKENIZER}
        where = str(opened.path)
        limits = Limits(context, sequences, num_cores() if threads is None else threads, kv)
        self._open(opened.architecture, opened.layouts, tensors, limits, where, opened.check_unchanged)
        self._parents = _parents(opened.provenance)

    @classmethod
    def from_tensors(
        cls,
        architecture: Architecture,
        layouts: Mapping[str, Layout],
        tensors: Mapping[str, NDArray[Any]],
        *,
        context: int = 2048,
        sequences: int = 1,
        threads: int | None = None,
        kv: KvKind = "f16",
        where: str = "model",
    ) -> Self:
        """A session over arrays in memory: `tensors` as `Model` takes them. They must not change while it is open."""
        session = cls.__new__(cls)
        limits = Limits(context, sequences, num_cores() if threads is None else threads, kv)
        session._open(architecture, layouts, tensors, limits, where, lambda: None)
        session._parents = frozenset()
        return session

    def _open(
        self,
        architecture: Architecture,
        layouts: Mapping[str, Layout],
        tensors: Mapping[str, NDArray[Any]],
        limits: Limits,
        where: str,
        check_unchanged: Callable[[], None],
    ) -> None:
        self._handle = ctypes.c_void_p()
        self._work = threading.Lock()  # held by whoever uses the engine
        self._life = threading.Lock()  # held while the handle is looked at by cancel(), or given up
        self._process = os.getpid()
        self._where = where
        self._check_unchanged = check_unchanged
        self._limits = limits
        self._vocab_size = architecture.vocab_size
        limits.check(where)
        self._tokens: list[list[int]] = [[] for _ in range(limits.sequences)]
        self._adapters = Adapters(limits.sequences)
        self._model = Model(architecture, layouts, tensors, where=where)
        sizes = (limits.context, limits.sequences, limits.threads, binding.KV_KINDS[limits.kv])
        status = binding.library().pj_session_create(self._model.handle, *sizes, ctypes.byref(self._handle))
        binding.check(status, where=where)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def context(self) -> int:
        """How many tokens a sequence can hold."""
        return self._limits.context

    @property
    def sequences(self) -> int:
        """How many sequences there are."""
        return self._limits.sequences

    @property
    def threads(self) -> int:
        return self._limits.threads

    @property
    def length(self) -> int:
        """How many tokens the first sequence holds."""
        return self.lengths[0]

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many tokens each sequence holds."""
        with self._work:
            handle, length = self._open_handle(), binding.library().pj_session_length
            return tuple(int(length(handle, sequence)) for sequence in range(self.sequences))

    @property
    def nbytes(self) -> int:
        """Bytes of cache and buffers; the model's own are not counted."""
        with self._work:
            return int(binding.library().pj_session_bytes(self._open_handle()))

    def forward(
        self,
        tokens: Sequence[int] | NDArray[np.integer[Any]],
        num_logits: int = 1,
        *,
        sequence: int | Sequence[int] | NDArray[np.integer[Any]] = 0,
    ) -> NDArray[np.float32]:
        """Append tokens; logits of the last `num_logits` of them, float32 [num_logits, vocab_size].

        sequence: where they go, one for all or one for each token. Those of different sequences may alternate; the
        weights are read once for all, and every sequence gets the same bits as if it were alone.
        Raises PenjingError (an EngineError where the engine refused), and then the session is as before; but sequences
        that got more than `binding.WAY_BACK` tokens are empty where a layer's window forgot what they held.
        """
        token_T = self._checked(tokens)
        sequence_T = self._checked_sequences(sequence, len(token_T))
        if not 0 <= num_logits <= len(token_T):
            raise PenjingError(f"{num_logits} logits wanted of {len(token_T)} tokens", where=self._where)
        logits = np.empty((num_logits, self._vocab_size), np.float32)
        with self._work:
            handle = self._open_handle()
            self._check_unchanged()
            pointers = (binding.pointer(token_T), binding.pointer(sequence_T))
            forward = binding.library().pj_forward  # lets other Python threads run
            status = forward(handle, *pointers, len(token_T), binding.pointer(logits), num_logits)
            if status:
                for held in set(sequence_T.tolist()):
                    del self._tokens[held][binding.library().pj_session_length(handle, held) :]
            binding.check(status, where=self._where)
            for held, added in zip(sequence_T.tolist(), token_T.tolist(), strict=True):
                self._tokens[held].append(added)
        return logits

    def least_length(self, sequence: int = 0) -> int:
        """The fewest tokens, none apart, that a sequence can be truncated or forked to; 0: any number."""
        with self._work:
            return int(binding.library().pj_session_least(self._open_handle(), self._checked_sequence(sequence)))

    def truncate(self, length: int, *, sequence: int = 0) -> None:
        """Forget all but the first `length` tokens of a sequence.

        Raises EngineError with status FORGOTTEN, and changes nothing, for fewer than `least_length` but more than none.
        """
        with self._work:
            handle = self._open_handle()
            if not 0 <= length <= _INT32.max:
                raise PenjingError(f"cannot keep {length} tokens", where=self._where)
            truncate = binding.library().pj_session_truncate
            binding.check(truncate(handle, self._checked_sequence(sequence), length), where=self._where)
            del self._tokens[sequence][length:]

    def fork(self, source: int, target: int, length: int | None = None) -> None:
        """Make sequence `target` the first `length` tokens (None: all) of `source`, as if it had been given them.

        Raises EngineError as `truncate` does.
        """
        source, target = self._checked_sequence(source), self._checked_sequence(target)
        length = self.lengths[source] if length is None else length
        with self._work:
            handle = self._open_handle()
            if not 0 <= length <= _INT32.max:
                raise PenjingError(f"cannot fork {length} tokens", where=self._where)
            binding.check(binding.library().pj_session_fork(handle, source, target, length), where=self._where)
            self._tokens[target] = self._tokens[source][:length]
            self._adapters.use(self._adapters.used(source), target)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that are loaded."""
        return self._adapters.names

    def load_adapter(self, adapter: str | Path | Adapter, *, name: str | None = None) -> str:
        """Load an adapter file or peft folder, beside those that are loaded; the name to use it by.

        Raises PenjingError where it is damaged or does not belong to this model.
        """
        where = "adapter" if isinstance(adapter, Adapter) else str(adapter)
        architecture = self._model.architecture
        read = adapter if isinstance(adapter, Adapter) else read_adapter(adapter, architecture)
        if read.parent and self._parents and read.parent not in self._parents:
            raise PenjingError("the adapter was trained on another model", where=where, attempt="that model, packed")
        if name is None:
            name = "adapter" if isinstance(adapter, Adapter) else default_name(adapter)
        with self._work:
            self._open_handle()
            self._adapters.load(name, read, self._model.handle, architecture, where=where)
        return name

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter that no sequence uses."""
        with self._work:
            self._open_handle()
            self._adapters.unload(name, where=self._where)

    def use_adapter(self, name: str | None, *, sequence: int = 0) -> None:
        """From now on a sequence is evaluated with this adapter (None: without any).

        If it used another, what it held is forgotten: the same tokens mean something else now.
        """
        with self._work:
            handle, adapter = self._open_handle(), self._adapters.handle(name, where=self._where)
            use = binding.library().pj_session_use_adapter
            binding.check(use(handle, self._checked_sequence(sequence), adapter), where=self._where)
            if self._adapters.used(sequence) != name:
                self._adapters.use(name, sequence)
                self._tokens[sequence].clear()

    def adapter(self, sequence: int = 0) -> str | None:
        """The name of the adapter that a sequence uses."""
        return self._adapters.used(self._checked_sequence(sequence))

    def tokens(self, sequence: int = 0) -> list[int]:
        """The tokens that a sequence holds."""
        with self._work:
            return self._tokens[self._checked_sequence(sequence)].copy()

    def save_prefix(self, path: str | Path, *, sequence: int = 0) -> None:
        """Write what a sequence holds to a file, from which `load_prefix` brings it back without evaluating it."""
        with self._work:
            handle, engine = self._open_handle(), binding.library()
            self._check_unchanged()
            token_T = np.array(self._tokens[self._checked_sequence(sequence)], np.int32)
            if not len(token_T):
                raise PenjingError("the sequence is empty: nothing to save", where=self._where)
            least = engine.pj_session_least(handle, sequence)
            state = np.empty(engine.pj_session_state_bytes(handle, len(token_T), least), np.uint8)
            binding.check(engine.pj_session_export(handle, sequence, binding.pointer(state)), where=self._where)
            write_prefix(path, Prefix(token_T, state, least), identity=self.prefix_identity(sequence))

    def load_prefix(self, path: str | Path, *, sequence: int = 0) -> list[int]:
        """Make a sequence what a file holds; its tokens. The logits that follow are those of the session that saved it.

        Raises PenjingError where the file is damaged, was saved by another model, or does not fit; then the sequence is
        as before.
        """
        with self._work:
            handle, engine = self._open_handle(), binding.library()
            self._check_unchanged()
            self._checked_sequence(sequence)
            prefix = read_prefix(path, identity=self.prefix_identity(sequence))
            token_T, num_tokens = self._checked(prefix.tokens), len(prefix.tokens)
            if num_tokens > self.context:
                fact = f"a prefix of {num_tokens} tokens does not fit a context of {self.context}"
                raise PenjingError(fact, where=str(path), attempt="a larger context")
            if len(prefix.state) != engine.pj_session_state_bytes(handle, num_tokens, prefix.least):
                fact = f"{len(prefix.state)} bytes are not the state of {num_tokens} tokens"
                raise PenjingError(fact, where=str(path), attempt="evaluate the text again and save it")
            state = binding.pointer(prefix.state)
            binding.check(
                engine.pj_session_import(handle, sequence, state, num_tokens, prefix.least), where=self._where
            )
            self._tokens[sequence] = token_T.tolist()
            return self._tokens[sequence].copy()

    def prefix_identity(self, sequence: int = 0) -> str:
        """What a saved prefix depends on, besides its tokens. Kernels of all instruction sets give the same bits."""
        adapter = self._adapters.digest(sequence)
        return f"{self._model.digest} {self._limits.kv} penjing {penjing.__version__}" + f" {adapter}" * bool(adapter)

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
            self._adapters.close()
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

    def _checked_sequence(self, sequence: int) -> int:
        if not 0 <= sequence < self.sequences:
            fact = f"sequence {sequence} of {self.sequences}, numbered from 0"
            raise PenjingError(fact, where=self._where, attempt="Session(..., sequences=N)")
        return sequence

    def _checked_sequences(
        self, sequence: int | Sequence[int] | NDArray[np.integer[Any]], num_tokens: int
    ) -> NDArray[np.int32]:
        """The sequence of each token, as the engine reads them."""
        sequence_T = np.asarray(sequence)
        if sequence_T.ndim == 0:
            sequence_T = np.full(num_tokens, sequence_T)
        if sequence_T.shape != (num_tokens,) or sequence_T.dtype.kind not in "iu":
            fact = f"sequences of {sequence_T.dtype} {sequence_T.shape} for {num_tokens} tokens"
            raise PenjingError(fact, where=self._where, attempt="one integer, or one for each token")
        self._checked_sequence(int(sequence_T.min()))
        self._checked_sequence(int(sequence_T.max()))
        return np.ascontiguousarray(sequence_T, dtype=np.int32)


def _parents(provenance: Mapping[str, Any]) -> frozenset[str]:
    """Digests of the checkpoints that an adapter for a packed model may have been trained on."""
    base = provenance.get("base")
    digests = (provenance.get("parent"), base.get("digest") if isinstance(base, dict) else None)
    return frozenset(digest for digest in digests if isinstance(digest, str))
