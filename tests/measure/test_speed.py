"""Speeds: who has a turn when, what a median is, which answers are good enough for a number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from penjing.errors import PenjingError
from penjing.format.architecture import Architecture
from penjing.format.pack import Layout
from penjing.measure import speed as module
from penjing.measure.speed import Speed, bytes_per_token, check_answers, interleave, relative_spread, speed, speeds


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """A session whose every call takes a known time."""

    vocab_size, threads = 7, 1

    def __init__(self, clock: Clock) -> None:
        self.clock, self.length = clock, 0

    def truncate(self, length: int) -> None:
        self.clock.now += 50.0  # not part of any timing
        self.length = length

    def forward(self, tokens, num_logits: int = 1) -> np.ndarray:
        self.clock.now += 1.0 + 0.01 * len(tokens)
        self.length += len(tokens)
        return np.zeros((num_logits, self.vocab_size), np.float32)


class Wrong:
    """A session with one flaw: `spoil` sees the logits, and whether one token was fed."""

    vocab_size, threads = 11, 2

    def __init__(self, spoil: Callable[[np.ndarray, bool], None] = lambda logits, single: None) -> None:
        self.spoil, self.fed = spoil, []

    def truncate(self, length: int) -> None:
        del self.fed[length:]

    def forward(self, tokens, num_logits: int = 1) -> np.ndarray:
        self.fed.extend(int(token) for token in tokens)
        counts = np.arange(len(self.fed) - num_logits, len(self.fed), dtype=np.float32)
        logits = counts[:, None] + np.arange(self.vocab_size, dtype=np.float32)
        self.spoil(logits, len(tokens) == 1)
        return logits


def test_tasks_take_turns_and_the_warm_up_does_not_count() -> None:
    clock, order, steps = Clock(), [], []

    def task(name: str, seconds: float) -> module.Task:
        def run(now: module.Clock) -> float:
            order.append(name)
            clock.now += 9.0
            start = now()
            clock.now += seconds * len(order)
            return now() - start

        return run

    tasks = {"a": task("a", 1.0), "b": task("b", 2.0)}
    found = interleave(tasks, repeats=2, warmup=1, clock=clock, progress=lambda *step: steps.append(step))
    assert order == ["a", "b"] * 3
    assert found == {"a": pytest.approx([3.0, 5.0]), "b": pytest.approx([8.0, 12.0])}
    assert steps == [("speed", 1, 3), ("speed", 2, 3), ("speed", 3, 3)]


def test_prefill_is_one_call_and_decode_begins_after_its_prompt() -> None:
    clock = Clock()
    assert module._prefill(Slow(clock), 512)(clock) == pytest.approx(1 + 5.12)
    assert module._decode(Slow(clock), 128)(clock) == pytest.approx(128 * 1.01)


def test_rates_are_of_medians() -> None:
    samples = {
        (0, 2, "prefill"): [1.0, 9.0, 2.0],
        (0, 2, "decode"): [4.0, 4.0, 4.0],
        (0, 2, "read"): [0.01, 0.025, 0.5],
    }
    found = module._speed(2, samples, 0, prompt=100, decode=40)
    assert found == Speed(
        threads=2, prefill_tokens_per_s=50.0, decode_tokens_per_s=10.0, spread=2.0, decode_limit_fraction=0.25
    )


def test_spread_is_the_interquartile_range_over_the_median() -> None:
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert relative_spread([5.0]) == 0.0
    assert relative_spread([3.0, 3.0]) == 0.0


def architecture(**facts: object) -> Architecture:
    told = {
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tied": True,
        "attention_scale": 1.0,
        "layer_rope": (-1, -1),
        "layer_window": (0, 0),
    }
    return Architecture(**(told | facts))


def test_bytes_of_a_token_by_hand() -> None:
    arch = architecture()
    layouts = {
        name: Layout(kind="codes", rows=rows, cols=cols, bits=4, group_size=16)
        for name, (rows, cols) in arch.matrix_shapes().items()
    }
    weights = 32 * 16 + 2 * (16 * 16 + 2 * 16 * 16 + 16 * 16 + 3 * 48 * 16)  # k and v are padded from 8 to 16 rows
    matrices = weights // 2 + weights // 16 * 2  # codes and scales
    norms, cache = 4 * 5 * 16, 2 * 2 * 8 * 2  # of one position: keys and values, float16, 8 wide, two layers
    assert bytes_per_token(arch, layouts, context=0) == matrices + norms
    assert bytes_per_token(arch, layouts, context=30) == matrices + norms + 30 * cache
    codes = 2 * 2 * (8 + 4 * arch.num_kv_heads)  # a byte each, and a float32 scale a head
    assert bytes_per_token(arch, layouts, 30, "i8") == matrices + norms + 30 * codes
    windowed = architecture(layer_window=(0, 10))
    assert bytes_per_token(windowed, layouts, context=30) == matrices + norms + 20 * cache


def test_an_embedding_that_is_not_the_head_is_read_by_the_row() -> None:
    arch = architecture(tied=False)
    layouts = {name: Layout(kind="f16", rows=r, cols=c) for name, (r, c) in arch.matrix_shapes().items()}
    tied = {name: layout for name, layout in layouts.items() if name != "head"}
    assert bytes_per_token(arch, layouts, 5) == bytes_per_token(architecture(), tied, 5) + 2 * 16


def _not_finite(logits: np.ndarray, single: bool) -> None:
    logits[-1, 3] = np.nan


def _off_in_decode(logits: np.ndarray, single: bool) -> None:
    logits += 1e-6 if single else 0.0


def _off_always(logits: np.ndarray, single: bool) -> None:
    logits *= 1.5


def test_answers_are_checked_before_speeds() -> None:
    check_answers([Wrong(), Wrong()], where="m")
    with pytest.raises(PenjingError, match="not finite"):
        check_answers([Wrong(_not_finite)], where="m")
    with pytest.raises(PenjingError, match="in decode at 2 threads differ"):
        check_answers([Wrong(_off_in_decode)], where="m")
    with pytest.raises(PenjingError, match="in prefill at 2 threads differ"):
        check_answers([Wrong(), Wrong(_off_always)], where="m")


def test_a_real_model(packed_talker: Path) -> None:
    found = speeds([packed_talker, packed_talker], threads=2, prompt=24, decode=4, repeats=3)
    for entry in found:
        told = entry.to_json()
        assert set(told) == {
            "threads",
            "prefill_tokens_per_s",
            "decode_tokens_per_s",
            "spread",
            "decode_limit_fraction",
            "first_token_s",
            "one_thread",
        }
        assert told["threads"] == 2
        assert told["one_thread"]["threads"] == 1
        assert min(told["prefill_tokens_per_s"], told["decode_tokens_per_s"], told["decode_limit_fraction"]) > 0
        assert told["first_token_s"] > 0
    alone = speed(packed_talker, threads=1, prompt=24, decode=4, repeats=1)
    assert (alone.threads, alone.one_thread) == (1, None)
