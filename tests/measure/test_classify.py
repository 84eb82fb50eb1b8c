"""Classes answer with one token each; what they are judged by is right where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'penjing[fit]'")

from penjing.errors import PenjingError  # noqa: E402
from penjing.measure import classify  # noqa: E402


def _encode(text: str) -> list[int]:
    """A token a word; single letters have numbers of their own."""
    return [sum(ord(letter) * 31**at for at, letter in enumerate(word)) % 10_007 for word in text.split()]


def test_every_label_has_a_token_of_its_own_name_where_that_is_possible():
    labels = ["card_lost", "card", "lost_card_twice", "card_stolen"]
    tokens = classify.answer_tokens(_encode, labels)
    assert len(set(tokens)) == len(labels)
    assert all(token in _encode(label.replace("_", " ")) for label, token in zip(labels, tokens, strict=True))


def test_names_that_share_all_words_answer_with_letters():
    tokens = classify.answer_tokens(_encode, ["a b", "b a", "b"])
    assert len(set(tokens)) == 3
    assert len(set(tokens) & {*_encode("a b")}) == 2
    with pytest.raises(PenjingError, match="no token is left"):
        classify.answer_tokens(_encode, ["same"] * 40)


def test_probabilities_are_those_of_the_whole_model(tiny_model):
    model = tiny_model("granite").model  # its logits are scaled
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 101, size).astype(np.int32) for size in (5, 1, 9, 5)]
    answers = [7, 50, 3]
    found_NC = classify.log_probabilities(model, prompts, answers)
    for prompt, found_C in zip(prompts, found_NC, strict=True):
        with torch.no_grad():
            logit_V = model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1]
        wanted_C = torch.log_softmax(logit_V[answers], 0).numpy()
        # sums of 40 and 52 products in 3 layers, in another order
        slack = 3 * (40 + 52) * float(np.finfo(np.float32).eps) * max(1.0, float(logit_V.abs().max()))
        np.testing.assert_allclose(found_C, wanted_C, rtol=0, atol=slack)


def test_wilsons_interval():
    right = classify.accuracy(np.arange(10), np.arange(10))
    # all right of 10: from n / (n + z²) to 1
    assert (right.value, right.high) == (1.0, pytest.approx(1.0))
    assert right.low == pytest.approx(10 / (10 + 1.959964**2))
    half = classify.accuracy(np.array([0, 1] * 50), np.zeros(100, int))
    assert half.value == 0.5
    assert half.low == pytest.approx(1 - half.high) == pytest.approx(0.4038, abs=1e-4)
    with pytest.raises(PenjingError):
        classify.accuracy(np.zeros(0, int), np.zeros(0, int))


def test_macro_f1():
    label_NC = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], bool)
    predicted_NC = np.array([[1, 0], [0, 1], [0, 1], [0, 0]], bool)
    # both classes: one hit, one miss or false alarm: 2 / 3
    found = classify.macro_f1(predicted_NC, label_NC)
    assert found.value == pytest.approx(2 / 3)
    assert 0 <= found.low < found.value < found.high <= 1
    assert classify.macro_f1(label_NC, label_NC).value == 1.0
