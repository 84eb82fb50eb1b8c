"""One pass over right answers finds what decoding token by token within the allowed ones finds."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'penjing[fit]'")

from penjing.measure.answers import answer_of, right_answers  # noqa: E402
from penjing.train.batch import Tokens, document  # noqa: E402

ALLOWED = [(7, 2), (7, 8, 2), (9, 2), (9, 9, 8, 2), (11,)]


def _decoded(model, prompt, allowed):
    """Token by token, always one with which an allowed answer goes on."""
    said: tuple[int, ...] = ()
    while said not in allowed:
        rivals = sorted({answer[len(said)] for answer in allowed if answer[: len(said)] == said})
        with torch.no_grad():
            logit_V = model(torch.tensor([[*prompt, *said]])).logits[0, -1]
        said += (rivals[int(logit_V[rivals].argmax())],)
    return said


@pytest.mark.parametrize("family", ["llama", "granite"])
def test_the_same_as_decoding_within_the_answers(tiny_model, family):
    model = tiny_model(family).model
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 101, size).tolist() for size in rng.integers(1, 9, 40)]
    answers = [ALLOWED[number % len(ALLOWED)] for number in range(len(prompts))]
    documents = [document([*p, *a], answer_from=len(p)) for p, a in zip(prompts, answers, strict=True)]
    found = right_answers(model, documents, ALLOWED)
    wanted = [_decoded(model, p, ALLOWED) == a for p, a in zip(prompts, answers, strict=True)]
    assert found.tolist() == wanted
    assert 0 < sum(wanted) < len(wanted)


def test_its_own_answer_is_always_allowed_and_alone_it_is_right(tiny_model):
    model = tiny_model("llama").model
    assert right_answers(model, [document([5, 6, 7, 2], answer_from=2)], ()).tolist() == [True]
    assert right_answers(model, [], ALLOWED).tolist() == []


def test_a_first_token_is_no_target():
    whole = Tokens(np.array([5, 6, 7], np.int32), np.array([True, False, True]))
    assert answer_of(whole) == (7,)
