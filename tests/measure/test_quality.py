"""Perplexity, bits per byte, KL and agreement against closed forms and a slow reference."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.measure.quality import Quality, qualities, quality


class Table:
    """A model whose logits depend on the current token only: row `token` of a table. Chunks of `chunk` positions."""

    def __init__(self, logit_VV: NDArray[np.float32], chunk: int = 3) -> None:
        self.logit_VV = np.asarray(logit_VV, np.float32)
        self.chunk = chunk
        self.windows_seen = 0

    @property
    def vocab_size(self) -> int:
        return self.logit_VV.shape[1]

    def logits(self, tokens_T: NDArray[np.int32]) -> Iterator[NDArray[np.float32]]:
        self.windows_seen += 1
        for start in range(0, len(tokens_T), self.chunk):
            yield self.logit_VV[tokens_T[start : start + self.chunk]]


def some_windows(vocab: int, count: int = 3, length: int = 11, seed: int = 0) -> Windows:
    return Windows(np.random.default_rng(seed).integers(vocab, size=(count, length), dtype=np.int32), num_bytes=100)


def constant(probabilities: list[float], chunk: int = 3) -> Table:
    return Table(np.tile(np.log(np.array(probabilities, np.float64)), (len(probabilities), 1)), chunk)


@pytest.mark.parametrize("vocab", [2, 16, 1000])
def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(vocab: int) -> None:
    windows = some_windows(vocab)
    found = quality(Table(np.zeros((vocab, vocab))), windows)
    assert found.perplexity == pytest.approx(vocab, rel=1e-12)
    assert found.bits_per_byte == pytest.approx(30 * math.log2(vocab) / 100, rel=1e-12)
    assert found == Quality(perplexity=found.perplexity, bits_per_byte=found.bits_per_byte, tokens=30)


def test_the_first_token_is_not_predicted_and_all_others_are() -> None:
    windows = Windows(np.array([[0, 1, 1, 1], [0, 1, 1, 1]], np.int32), num_bytes=6)
    assert quality(constant([0.25, 0.75]), windows).perplexity == pytest.approx(4 / 3, rel=1e-6)
    assert quality(constant([0.25, 0.75]), windows).tokens == 6


def test_predictions_are_for_the_next_token() -> None:
    next_token = Table(np.full((4, 4), -50.0) + 100 * np.roll(np.eye(4), 1, axis=1))  # after i comes i + 1
    windows = Windows(np.array([[0, 1, 2, 3, 0, 1]], np.int32), num_bytes=5)
    assert quality(next_token, windows).perplexity == pytest.approx(1.0, abs=1e-12)


def test_divergence_and_agreement_in_closed_form() -> None:
    parent, model = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]
    found = quality(constant(model), some_windows(3), parent=constant(parent, chunk=4))
    wanted = sum(p * math.log(p / q) for p, q in zip(parent, model, strict=True))
    assert found.kl_to_parent == pytest.approx(wanted, rel=1e-6)  # float32 logits
    assert found.top1_agreement == 0.0
    swapped = quality(constant(parent), some_windows(3), parent=constant(model))
    assert swapped.kl_to_parent == pytest.approx(0.3 * math.log(2.5), rel=1e-6)


def test_a_model_is_no_distance_from_itself() -> None:
    table = Table(np.random.default_rng(1).normal(size=(50, 50)) * 10)
    found = quality(table, some_windows(50), parent=table)
    assert (found.kl_to_parent, found.top1_agreement) == (0.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 15), st.floats(0.1, 1e4), st.floats(-1e6, 1e6), st.integers(0, 99))
def test_against_a_slow_reference(vocab: int, chunk: int, size: float, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables = [np.float32(rng.normal(size=(vocab, vocab)) * size + shift) for _ in range(2)]
    windows = some_windows(vocab, seed=seed)
    found = quality(Table(tables[0], chunk), windows, parent=Table(tables[1], 4))
    log_p, log_q = (_log_softmax(table.astype(np.longdouble)) for table in tables[::-1])
    now, after = windows.tokens_WT[:, :-1].ravel(), windows.tokens_WT[:, 1:].ravel()
    nll = float(-log_q[now, after].mean())
    kl = float((np.exp(log_p) * (log_p - log_q)).sum(axis=1)[now].mean())
    # rounding: a few steps of float64 on numbers as large as the logits, and the sum over the vocabulary
    tolerance = np.finfo(np.float64).eps * vocab * (abs(shift) + 10 * size + 10)
    assert math.log(found.perplexity) == pytest.approx(nll, abs=tolerance) or nll > 700
    assert found.kl_to_parent == pytest.approx(kl, abs=tolerance)
    assert found.top1_agreement == np.mean(tables[0].argmax(1)[now] == tables[1].argmax(1)[now])


def _log_softmax(logit_VV: NDArray[np.longdouble]) -> NDArray[np.longdouble]:
    shifted = logit_VV - logit_VV.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def test_the_parent_predicts_once_for_all_models() -> None:
    rng = np.random.default_rng(2)
    models = {name: Table(rng.normal(size=(9, 9)), chunk) for name, chunk in (("a", 1), ("b", 5), ("c", 100))}
    parent = Table(rng.normal(size=(9, 9)))
    seen: list[tuple[str, int, int]] = []
    together = qualities(models, some_windows(9), parent=parent, progress=lambda *step: seen.append(step))
    assert parent.windows_seen == 3
    assert seen == [("quality", 1, 3), ("quality", 2, 3), ("quality", 3, 3)]
    for name, model in models.items():
        assert together[name] == quality(model, some_windows(9), parent=parent)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(bad: float) -> None:
    table = np.zeros((5, 5))
    table[2, 3] = bad
    windows = Windows(np.array([[0, 1, 0, 1, 2, 1]], np.int32), num_bytes=5)
    with pytest.raises(PenjingError, match="not finite, at position 4"):
        quality(Table(table), windows)
    with pytest.raises(PenjingError, match="not finite"):
        quality(Table(np.zeros((5, 5))), windows, parent=Table(table))


def test_a_hopeless_model_is_infinitely_perplexed() -> None:
    found = quality(Table([[0.0, -1e30], [0.0, -1e30]]), Windows(np.ones((1, 3), np.int32), num_bytes=2))
    assert found.perplexity == math.inf


def test_what_cannot_be_compared() -> None:
    with pytest.raises(PenjingError, match="beyond a vocabulary of 4"):
        quality(Table(np.zeros((4, 4))), Windows(np.array([[0, 4]], np.int32), num_bytes=1))
    with pytest.raises(PenjingError, match="not the parent's"):
        quality(Table(np.zeros((4, 4))), some_windows(4), parent=Table(np.zeros((5, 5))))
    for empty in (np.zeros((0, 5), np.int32), np.zeros((3, 1), np.int32)):
        with pytest.raises(PenjingError, match="nothing to predict"):
            quality(Table(np.zeros((4, 4))), Windows(empty, num_bytes=0))


def test_json_has_what_was_measured_only() -> None:
    assert set(quality(constant([0.5, 0.5]), some_windows(2)).to_json()) == {"perplexity", "bits_per_byte", "tokens"}
    both = quality(constant([0.5, 0.5]), some_windows(2), parent=constant([0.5, 0.5])).to_json()
    assert set(both) == {"perplexity", "bits_per_byte", "tokens", "kl_to_parent", "top1_agreement"}
