"""Prefill and decode speed of packed models, against what the machine's memory allows in the same run.

Everything that is compared takes turns: A B A B …, so that a machine that is busy for a moment is busy for all.
A speed is refused where the answers are not the same at one and many threads, in prefill and in decode.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.evidence import num_cores
from penjing.format.architecture import Architecture
from penjing.format.container import open_container
from penjing.format.pack import Layout
from penjing.measure import fresh
from penjing.measure.probe import read_bytes_per_s
from penjing.measure.quality import Progress
from penjing.runtime.session import KvKind, Session

Key = TypeVar("Key")
Clock = Callable[[], float]
Task = Callable[[Clock], float]

PROMPT = 512  # tokens of a prefill
DECODE = 128  # tokens decoded
DECODE_PROMPT = 16  # tokens before the first decoded one
_FIRST_TOKEN_REPEATS = 3
#: of a key's or value's entry; `auto` counts as codes, whose scale for each position and head comes on top
_KV_BYTES = {"f32": 4, "f16": 2, "i8": 1, "auto": 1}
_KV_SCALE_BYTES = {"i8": 4, "auto": 4}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Medians. `spread` is the larger interquartile range of the two rates, as a fraction of its median.

    `decode_limit_fraction` is decode tokens/s × bytes read a token ÷ read bandwidth with as many threads over a buffer
    of as many bytes, so that a model that fits a cache is held against that cache.
    """

    threads: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    spread: float
    decode_limit_fraction: float
    first_token_s: float | None = None  # in a new process, from its start
    one_thread: Speed | None = None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "threads": self.threads,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "spread": self.spread,
            "decode_limit_fraction": self.decode_limit_fraction,
        }
        if self.first_token_s is not None:
            found["first_token_s"] = self.first_token_s
        if self.one_thread is not None:
            found["one_thread"] = self.one_thread.to_json()
        return found


def speed(path: Path, **options: Any) -> Speed:
    """The speed of one packed model; options and errors as of `speeds`."""
    return speeds([path], **options)[0]


def speeds(
    paths: Sequence[Path],
    *,
    threads: int | None = None,
    prompt: int = PROMPT,
    decode: int = DECODE,
    repeats: int = 5,
    kv: KvKind = "f16",
    clock: Clock = time.perf_counter,
    progress: Progress | None = None,
) -> list[Speed]:
    """Packed models side by side, at one thread and at `threads` (default: every core), in the order given.

    One warm-up round, then `repeats` rounds in which every model and every bandwidth probe has its turn.
    Raises PenjingError where a model's answers depend on threads or on how the tokens arrive, or are not finite.
    """
    counts = sorted({1, threads or num_cores()})
    context = max(prompt, DECODE_PROMPT + decode)
    tasks: dict[tuple[int, int, str], Task] = {}
    with ExitStack() as stack:
        for index, path in enumerate(paths):
            container = open_container(path)
            stack.callback(container.close)
            sessions = {count: Session(container, context=context, threads=count, kv=kv) for count in counts}
            for session in sessions.values():
                stack.callback(session.close)
            check_answers(list(sessions.values()), where=str(path))
            size = bytes_per_token(container.architecture, container.layouts, DECODE_PROMPT + decode // 2, kv)
            for count, session in sessions.items():
                tasks[index, count, "prefill"] = _prefill(session, prompt)
                tasks[index, count, "decode"] = _decode(session, decode)
                tasks[index, count, "read"] = _read(size, count)
        samples = interleave(tasks, repeats=repeats, clock=clock, progress=progress)
    found = []
    for index, path in enumerate(paths):
        by_count = [_speed(count, samples, index, prompt, decode) for count in counts]
        first = statistics.median(_first_token_s(path, clock) for _ in range(_FIRST_TOKEN_REPEATS))
        one_thread = by_count[0] if len(counts) > 1 else None
        found.append(dataclasses.replace(by_count[-1], first_token_s=first, one_thread=one_thread))
    return found


def interleave(
    tasks: Mapping[Key, Task], *, repeats: int, clock: Clock, warmup: int = 1, progress: Progress | None = None
) -> dict[Key, list[float]]:
    """Seconds of every task in every round, warm-up rounds left out. A task times its own part with the clock."""
    samples: dict[Key, list[float]] = {key: [] for key in tasks}
    total = warmup + repeats
    for index in range(total):
        for key, task in tasks.items():
            seconds = task(clock)
            if index >= warmup:
                samples[key].append(seconds)
        if progress is not None:
            progress("speed", index + 1, total)
    return samples


def relative_spread(samples: Sequence[float]) -> float:
    """Interquartile range over the median; 0 for a single sample."""
    if len(samples) < 2:
        return 0.0
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / median


def bytes_per_token(architecture: Architecture, layouts: Mapping[str, Layout], context: int, kv: KvKind = "f16") -> int:
    """Bytes of memory that decoding one token after `context` others must read.

    All matrices with their scales and zero points (of an embedding that is not also the head: one row), norms, keys
    and values.
    """
    embed = layouts["embed"]
    matrices = sum(layout.nbytes for layout in layouts.values())
    if not architecture.tied:
        matrices -= embed.nbytes - embed.nbytes // embed.rows
    norms = 4 * sum(architecture.norm_sizes().values())
    positions = sum(min(window or context, context) for window in architecture.layer_window)
    scales = _KV_SCALE_BYTES.get(kv, 0) * architecture.num_kv_heads
    return matrices + norms + 2 * (_KV_BYTES[kv] * architecture.kv_size + scales) * positions


def check_answers(sessions: Sequence[Session], *, where: str) -> None:
    """The same tokens must give the same bits in every session, at once or one by one; else PenjingError."""
    tokens_T = _tokens(sessions[0].vocab_size, 24)
    wanted_TV: NDArray[np.float32] | None = None
    for session in sessions:
        session.truncate(0)
        at_once_TV = session.forward(tokens_T, num_logits=len(tokens_T))
        session.truncate(0)
        one_by_one_TV = np.concatenate([session.forward([token]) for token in tokens_T.tolist()])
        wanted_TV = at_once_TV if wanted_TV is None else wanted_TV
        for found_TV, what in ((at_once_TV, "in prefill"), (one_by_one_TV, "in decode")):
            if not np.isfinite(found_TV).all():
                raise PenjingError(f"logits {what} are not finite: no speed is reported", where=where)
            if not np.array_equal(found_TV, wanted_TV):
                raise PenjingError(
                    f"logits {what} at {session.threads} threads differ from those in prefill at one: "
                    "no speed is reported",
                    where=where,
                    attempt="PENJING_ISA=scalar, and report this",
                )


def _tokens(vocab_size: int, count: int) -> NDArray[np.int32]:
    return np.random.default_rng(0).integers(vocab_size, size=count, dtype=np.int32)


def _prefill(session: Session, prompt: int) -> Task:
    tokens_T = _tokens(session.vocab_size, prompt)

    def task(clock: Clock) -> float:
        session.truncate(0)
        start = clock()
        session.forward(tokens_T)
        return clock() - start

    return task


def _decode(session: Session, decode: int) -> Task:
    tokens_T = _tokens(session.vocab_size, DECODE_PROMPT)

    def task(clock: Clock) -> float:
        session.truncate(0)
        logits_1V = session.forward(tokens_T)
        start = clock()
        for _ in range(decode):
            logits_1V = session.forward([int(logits_1V.argmax())])  # what a greedy reader would do
        return clock() - start

    return task


def _read(size: int, threads: int) -> Task:
    """Seconds to read `size` bytes; the engine's probe has its own clock."""
    return lambda clock: size / read_bytes_per_s(size, threads, repeats=3)


def _speed(
    threads: int, samples: Mapping[tuple[int, int, str], Sequence[float]], index: int, prompt: int, decode: int
) -> Speed:
    prefill_s, decode_s, read_s = (samples[index, threads, part] for part in ("prefill", "decode", "read"))
    per_token_s = statistics.median(decode_s) / decode
    return Speed(
        threads=threads,
        prefill_tokens_per_s=prompt / statistics.median(prefill_s),
        decode_tokens_per_s=1 / per_token_s,
        spread=max(relative_spread(prefill_s), relative_spread(decode_s)),
        decode_limit_fraction=statistics.median(read_s) / per_token_s,
    )


def _first_token_s(path: Path, clock: Clock) -> float:
    start = clock()
    fresh.run("first-token", str(path))
    return clock() - start
