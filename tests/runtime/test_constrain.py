"""Answers that must have a form have it, whatever the model would rather say."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from runtime.random_models import BASE, Tiny

from penjing.errors import PenjingError
from penjing.runtime.constrain import Vocabulary
from penjing.runtime.generate import generate
from penjing.runtime.sampling import Sampler

pytest.importorskip("llguidance", reason="llguidance is not installed")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vocabulary(byte_tokenizer):
    return Vocabulary(byte_tokenizer.to_str(), 260, [256])  # three rows more than the tokenizer has tokens


def answer(vocabulary, byte_tokenizer, kind, text, *, seed, temperature=1.0):
    """What a model that wants nothing in particular says."""
    random = np.random.default_rng(seed)
    sampler = Sampler(temperature=temperature, seed=seed, constraint=vocabulary.constraint(kind, text))
    drawn = []
    while not drawn or drawn[-1] != 256:
        drawn.append(sampler(4 * random.standard_normal(260).astype(np.float32), drawn))
        assert len(drawn) < 2000
    return byte_tokenizer.decode(drawn[:-1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_the_form_is_kept(vocabulary, byte_tokenizer, seed, temperature):
    def say(kind, text):
        return answer(vocabulary, byte_tokenizer, kind, text, seed=seed, temperature=temperature)

    told = json.loads(say("json_schema", json.dumps(SCHEMA)))
    assert told.keys() == SCHEMA["properties"].keys()
    assert len(told["name"]) <= 6
    assert 0 <= told["age"] <= 150
    assert told["kind"] in ("cat", "dog")
    pattern = r"[A-Z]{2}-[0-9]{1,4}( é)?"
    assert re.fullmatch(pattern, say("regex", pattern))
    assert say("grammar", 'start: greeting " " name\ngreeting: "hi" | "ho"\nname: "ann" | "bob"') in (
        {f"{greeting} {name}" for greeting in ("hi", "ho") for name in ("ann", "bob")}
    )


def test_one_form_leaves_nothing_to_the_next(vocabulary, byte_tokenizer):
    for pattern in ("a{3}", "b{3}", "a{3}"):
        assert re.fullmatch(pattern, answer(vocabulary, byte_tokenizer, "regex", pattern, seed=1))


def test_what_makes_no_sense_is_told(vocabulary):
    wrong = {"json_schema": ["{", '{"type": "nonsense"}'], "regex": ["[0-9"], "grammar": ["start: nowhere", "???"]}
    for kind, texts in wrong.items():
        for text in texts:
            with pytest.raises(PenjingError, match=kind):
                vocabulary.constraint(kind, text)


def test_models_that_cannot_are_told(byte_tokenizer):
    with pytest.raises(PenjingError, match="no end token"):
        Vocabulary(byte_tokenizer.to_str(), 257, [])
    with pytest.raises(PenjingError, match="cannot use the tokenizer"):
        Vocabulary("{}", 257, [256])


def test_a_token_that_is_not_allowed_is_an_error(vocabulary):
    constraint = vocabulary.constraint("regex", "abc")
    with pytest.raises(PenjingError, match="gave up"):
        constraint.accept(200)


def test_logits_are_not_changed_in_place_and_nan_is_still_told(vocabulary):
    sampler = Sampler(constraint=vocabulary.constraint("regex", "[a-z]+"))
    logits = np.zeros(260, np.float32)
    sampler(logits, [])
    assert not logits.any()
    with pytest.raises(PenjingError, match="nan"):
        sampler(np.full(260, np.nan, np.float32), [])


def test_speculation_does_not_change_an_answer_with_a_form(vocabulary, byte_tokenizer):
    tiny = Tiny(dataclasses.replace(BASE, vocab_size=260))
    answers = []
    for speculate in (False, True):
        with tiny.session(context=400) as session:
            sampler = Sampler(
                temperature=1.0, seed=3, constraint=vocabulary.constraint("regex", "(ab|abc|b)+[0-9]{100}")
            )
            options = {"sampler": sampler, "eos": {256}, "speculate": speculate, "clock": lambda: 0.0}
            answers.append("".join(generate(session, byte_tokenizer, [5, 6, 7], max_tokens=300, **options)))
    assert answers[0] == answers[1]
    assert re.fullmatch("(ab|abc|b)+[0-9]{0,100}", answers[0])


@pytest.mark.parametrize("wish", ["a", "z"])
def test_a_draw_that_is_allowed_needs_no_mask_and_one_that_is_not_gets_it(
    vocabulary, byte_tokenizer, wish, monkeypatch
):
    sampler = Sampler(constraint=vocabulary.constraint("regex", "[a-y]{3}"))
    masks = []
    allow = type(sampler.constraint).allow
    monkeypatch.setattr(type(sampler.constraint), "allow", lambda self, x: masks.append(1) or allow(self, x))
    logits = np.zeros(260, np.float32)
    logits[byte_tokenizer.token_to_id(wish)] = 2
    logits[byte_tokenizer.token_to_id("y")] = 1
    said = [sampler(logits, []) for _ in range(3)]
    assert byte_tokenizer.decode(said) == {"a": "aaa", "z": "yyy"}[wish]
    assert len(masks) == {"a": 0, "z": 3}[wish]
    assert sampler(logits, []) == 256  # complete: only the end is allowed
    assert sampler.constraint._matcher.is_stopped()


def test_draws_follow_the_distribution_of_what_is_allowed(vocabulary, byte_tokenizer):
    """Against the mask's own: each frequency within five standard deviations of its probability."""
    logits = np.random.default_rng(0).standard_normal(260).astype(np.float32)
    allowed = vocabulary.constraint("regex", "[a-f]").allow(logits)
    wanted = np.exp(allowed - allowed.max())
    wanted /= wanted.sum()
    count, draws = np.zeros(260), 4000
    sampler = Sampler(temperature=1.0, seed=1)
    for _ in range(draws):
        sampler.constraint = vocabulary.constraint("regex", "[a-f]")
        count[sampler(logits, [])] += 1
    assert (np.abs(count / draws - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / draws)).all()


def test_filters_see_only_what_is_allowed(vocabulary, byte_tokenizer):
    """The one likeliest is refused: with top_k=1 the likeliest of the allowed must come, whatever is drawn."""
    logits = np.zeros(260, np.float32)
    logits[byte_tokenizer.token_to_id("z")], logits[byte_tokenizer.token_to_id("c")] = 9, 5
    for seed in range(5):
        sampler = Sampler(1.0, top_k=1, seed=seed, constraint=vocabulary.constraint("regex", "[a-f]"))
        assert byte_tokenizer.decode([sampler(logits, [])]) == "c"
