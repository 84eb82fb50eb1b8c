"""Sampling against closed forms and against transformers' own processors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penjing.errors import PenjingError
from penjing.runtime import sampling
from penjing.runtime.sampling import Sampler

LOGITS = hnp.arrays(np.float32, st.integers(1, 700), elements=st.floats(-30, 30, width=32))


def random_logits(size: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits.astype(np.float64) - logits.max())
    return weight / weight.sum()


@given(LOGITS)
def test_temperature_zero_is_the_first_maximum(logits_V):
    assert Sampler(0.0, top_k=3, top_p=0.1)(logits_V, []) == int(np.argmax(logits_V))


@given(LOGITS, st.integers(1, 800))
def test_top_k_keeps_k_and_only_ties_more(logits_V, k):
    ids, kept = sampling.top_k((None, logits_V), k)
    if k >= len(logits_V):
        assert len(kept) == len(logits_V)
        return
    edge = np.sort(logits_V)[::-1][k - 1]
    assert len(kept) == np.count_nonzero(logits_V >= edge) >= k
    assert set(ids) == set(np.flatnonzero(logits_V >= edge))


@given(LOGITS, st.floats(0.01, 1.0, exclude_max=True))
def test_top_p_is_the_smallest_set(logits_V, p):
    ids, kept = sampling.top_p((None, logits_V), p)
    probability = softmax(logits_V)
    # float32 exponentials: relative error a few eps each, and their sum no more
    slack = 8 * np.finfo(np.float32).eps
    assert probability[ids].sum() >= p * (1 - slack)
    assert probability[ids].sum() - probability[ids].min() < p * (1 + slack)
    assert len(set(ids)) == len(ids) == len(kept)
    outside = np.delete(probability, ids)
    assert not len(outside) or outside.max() <= probability[ids].min() * (1 + slack)


@given(LOGITS, st.floats(0.001, 1.0))
def test_min_p_keeps_the_best_and_nothing_below_the_line(logits_V, p):
    ids, _ = sampling.min_p((None, logits_V), p)
    probability = softmax(logits_V)
    assert int(np.argmax(logits_V)) in ids
    slack = 1e-5  # logits up to 60 apart in float32: 60 * eps, as a factor on the probability
    assert (probability[ids] >= p * probability.max() * (1 - slack)).all()
    assert (np.delete(probability, ids) <= p * probability.max() * (1 + slack)).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.5, "top_k": 20},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3},
    ],
)
def test_draws_follow_the_closed_form(settings):
    logits_V, history, draws = random_logits(600, scale=1.5), [1, 5, 5, 9], 20_000
    sampler = Sampler(seed=7, **settings)
    ids, kept = sampler.filtered(sampling.penalize(logits_V, history, settings.get("repetition_penalty", 1.0)))
    expected = np.zeros(len(logits_V))
    expected[slice(None) if ids is None else ids] = draws * softmax(kept)
    counts = np.bincount([sampler(logits_V, history) for _ in range(draws)], minlength=len(logits_V))
    assert not counts[expected == 0].any()
    often = expected >= 5  # where the chi-square approximation holds; the rest is one cell
    cells = np.append(expected[often], expected[~often].sum())
    seen = np.append(counts[often], counts[~often].sum())
    cells, seen = cells[cells > 0], seen[cells > 0]
    chi_square = ((seen - cells) ** 2 / cells).sum()
    freedom = len(cells) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)  # mean and deviation of chi-square


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1000])
def test_every_token_can_be_drawn_and_none_beyond(size):
    weight = np.ones(size, dtype=np.float32)
    picked = {sampling._pick(weight, uniform) for uniform in (np.arange(size) + 0.5) / size}
    assert picked == set(range(size))
    assert sampling._pick(weight, 0.0) == 0
    assert sampling._pick(weight, np.nextafter(1.0, 0.0)) == size - 1


@pytest.mark.parametrize("size", [256, 300, 512])
def test_rounding_never_draws_beyond_the_end(size):
    for seed in range(50):
        weight = np.random.default_rng(seed).random(size, dtype=np.float32)
        assert sampling._pick(weight, np.nextafter(1.0, 0.0)) < size


def test_a_token_of_no_weight_is_never_drawn():
    weight = np.zeros(600, dtype=np.float32)
    weight[[300, 301]] = 1e-30, 1.0
    assert {sampling._pick(weight, u) for u in (0.0, 0.5, np.nextafter(1.0, 0.0))} <= {300, 301}


def test_same_seed_same_tokens():
    rows = [random_logits(300, seed) for seed in range(40)]

    def draw(seed: int) -> list[int]:
        sampler = Sampler(1.0, seed=seed)
        return [sampler(row, []) for row in rows]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


@pytest.mark.parametrize(
    ("settings", "processors"),
    [
        ({"top_k": 7}, [("TopKLogitsWarper", {"top_k": 7})]),
        ({"top_p": 0.7}, [("TopPLogitsWarper", {"top_p": 0.7})]),
        ({"min_p": 0.08}, [("MinPLogitsWarper", {"min_p": 0.08})]),
        (
            {"top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2},
            [
                ("TopKLogitsWarper", {"top_k": 40}),
                ("TopPLogitsWarper", {"top_p": 0.9}),
                ("MinPLogitsWarper", {"min_p": 0.05}),
            ],
        ),
    ],
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_equals_transformers(settings, processors, temperature):
    torch = pytest.importorskip("torch")
    logits_process = pytest.importorskip("transformers.generation.logits_process")
    history, penalty = [3, 4, 4, 17], settings.get("repetition_penalty", 1.0)
    chain = [
        logits_process.RepetitionPenaltyLogitsProcessor(penalty),
        logits_process.TemperatureLogitsWarper(temperature),
        *(getattr(logits_process, name)(**arguments) for name, arguments in processors),
    ]
    for seed in range(5):
        logits_V = random_logits(2000, seed)
        theirs = torch.from_numpy(logits_V)[None].clone()
        for process in chain:
            theirs = process(torch.tensor([history]), theirs)
        kept = np.flatnonzero(torch.isfinite(theirs[0]).numpy())
        ids, ours = Sampler(temperature, seed=0, **settings).filtered(sampling.penalize(logits_V, history, penalty))
        assert sorted(ids) == list(kept)
        np.testing.assert_allclose(softmax(ours), softmax(theirs[0].numpy())[ids], rtol=1e-4)


def test_penalty_follows_the_paper_and_leaves_its_argument_alone():
    logits_V = np.array([2.0, -2.0, 1.0], dtype=np.float32)
    np.testing.assert_array_equal(sampling.penalize(logits_V, [0, 1, 1], 2.0), [1.0, -4.0, 1.0])
    np.testing.assert_array_equal(logits_V, [2.0, -2.0, 1.0])


def test_minus_infinity_forbids_a_token():
    logits_V = np.full(50, -np.inf, dtype=np.float32)
    logits_V[[4, 8]] = 0.0
    sampler = Sampler(1.0, top_p=0.99, seed=0)
    assert {sampler(logits_V, []) for _ in range(50)} == {4, 8}


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e30])
def test_extreme_temperatures_stay_finite(temperature):
    token = Sampler(temperature, seed=0)(random_logits(100), [])
    assert 0 <= token < 100
    if temperature < 1:
        assert token == int(np.argmax(random_logits(100)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(bad, temperature):
    logits_V = random_logits(10)
    logits_V[3] = bad
    with pytest.raises(PenjingError, match="logits contain"):
        Sampler(temperature)(logits_V, [])


def test_everything_forbidden_is_an_error():
    with pytest.raises(PenjingError, match="every token is forbidden"):
        Sampler(1.0)(np.full(4, -np.inf, dtype=np.float32), [])


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.nan},
        {"seed": -1},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(PenjingError, match=next(iter(settings))):
        Sampler(**settings)
