"""One round of one packed model in a process of its own: every speed that the table asks for. Prints one JSON object.

    python scripts/speed/engine.py MODEL.penjing [--threads 2] [--prompts 512,2048] [--decode 128] [--sequences 8]

Answers are compared first: bit for bit between threads and ways of asking, so that what is timed is what was checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_engine import gain_of_sequences

from penjing.format.container import Container, open_container
from penjing.measure.probe import read_bytes_per_s
from penjing.measure.speed import bytes_per_token, check_answers
from penjing.runtime.session import Session

BEFORE = 16  # tokens before the first decoded one
REPEATS = 3  # within a round, after one that warms up; the median counts


def seconds(step: Callable[[], None]) -> float:
    times = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def tokens_of(session: Session, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(session.vocab_size, size=count, dtype=np.int32)


def prefill_tokens_per_s(session: Session, prompt: int) -> float:
    tokens_T = tokens_of(session, prompt)

    def step() -> None:
        session.truncate(0)
        session.forward(tokens_T)

    return prompt / seconds(step)


def decode_tokens_per_s(session: Session, decode: int) -> float:
    tokens_T = tokens_of(session, BEFORE)
    session.truncate(0)
    session.forward(tokens_T)

    def step() -> None:
        session.truncate(BEFORE)
        token = 0
        for _ in range(decode):
            token = int(session.forward([token])[0].argmax())

    return decode / seconds(step)


def measure(path: Path, *, threads: int, prompts: Sequence[int], decode: int, sequences: int) -> dict[str, float]:
    """Rates at `threads`, at one and at twice as many threads; with `sequences`, what decoding together gains."""
    found: dict[str, float] = {}
    container = open_container(path)
    context = max(*prompts, BEFORE + decode, 64)  # the check of answers takes some too
    counts = {"": threads, "one_thread_": 1, "twice_the_threads_": 2 * threads}
    sessions = {label: Session(container, context=context, threads=count, kv="auto") for label, count in counts.items()}
    check_answers(list(sessions.values()), where=str(path))
    for label, session in sessions.items():
        found[f"{label}decode"] = decode_tokens_per_s(session, decode)
        for prompt in prompts if not label else prompts[:1] * (label == "one_thread_"):
            found[f"{label}prefill_{prompt}"] = prefill_tokens_per_s(session, prompt)
        session.close()
    limit, alone = (read_limit(container, count, BEFORE + decode // 2) for count in (threads, 1))
    found |= {"of_read_limit": found["decode"] / limit, "reading_by_threads": limit / alone}
    if sequences > 1:
        with Session(
            container, context=BEFORE * 4 + decode, sequences=sequences, threads=threads, kv="auto"
        ) as session:
            found["together"] = gain_of_sequences(session, tokens_of(session, 64), min(decode, 32), 1)
    return found


def read_limit(container: Container, threads: int, context: int) -> float:
    """Tokens a second that reading alone allows, from a buffer as large as what a token reads."""
    size = bytes_per_token(container.architecture, container.layouts, context, "auto")
    return read_bytes_per_s(size, threads, repeats=5) / size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", default="512,2048")
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--sequences", type=int, default=1)
    asked = parser.parse_args()
    prompts = [int(prompt) for prompt in asked.prompts.split(",")]
    settings = {"threads": asked.threads, "decode": asked.decode, "sequences": asked.sequences}
    print(json.dumps(measure(asked.model, prompts=prompts, **settings)))


if __name__ == "__main__":
    main()
