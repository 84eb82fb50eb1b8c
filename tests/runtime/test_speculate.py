"""Speculation: the same text to the byte, fewer forward passes, and none in vain for long."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime.random_models import BASE, Tiny, codes_layout

from penjing.runtime.generate import generate
from penjing.runtime.sampling import Sampler
from penjing.runtime.speculate import LONGEST_REST, MOST, SIZES, Balance, Lookup

TINY = Tiny(BASE, codes_layout(4, 8))
REPETITIVE = [1, 2, 3, 4, 5, 6, 7] * 5


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(-1, 6))
def test_what_followed_last_time_is_proposed(tokens, most):
    lookup = Lookup()
    for token in tokens:
        lookup.add(token)
    expected = []
    for size in SIZES:
        ends = [end for end in range(size, len(tokens)) if tokens[end - size : end] == tokens[len(tokens) - size :]]
        if ends:
            expected = tokens[ends[-1] : ends[-1] + max(most, 0)]
            break
    assert lookup.propose(most) == expected


class Counting:
    """A session that notes how many tokens go in at once. `clock`: what that costs."""

    def __init__(self, session, seconds=lambda count: 1.0):
        self.session, self.seconds, self.now = session, seconds, 0.0
        self.counts = []

    def __getattr__(self, name):
        return getattr(self.session, name)

    def forward(self, tokens, num_logits=1):
        self.counts.append(len(tokens))
        self.now += self.seconds(len(tokens))
        return self.session.forward(tokens, num_logits)

    def clock(self):
        return self.now


def run(byte_tokenizer, *, speculate, seconds=lambda count: 1.0, context=128, prompt=REPETITIVE, **options):
    held = []
    sampler = Sampler(
        temperature=options.pop("temperature", 0.0), seed=5, repetition_penalty=options.pop("penalty", 1.0)
    )
    with TINY.session(context=context) as session:
        counting = Counting(session, seconds)
        options |= {"sampler": sampler, "cached": held, "clock": counting.clock, "speculate": speculate}
        generation = generate(counting, byte_tokenizer, prompt, **options)
        text = "".join(generation)
        assert session.tokens() == held
        return generation.result, text, held, counting.counts


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 80},
        {"max_tokens": 1},
        {"max_tokens": 500},  # the context ends it
        {"max_tokens": 80, "eos": {9, 20}},
        {"max_tokens": 80, "penalty": 1.3},
        {"max_tokens": 80, "stop": ["A"]},
        {"max_tokens": 80, "context": 36},
    ],
    ids=str,
)
def test_the_text_is_the_same_to_the_byte(byte_tokenizer, options, temperature):
    options = options | {"temperature": temperature}
    plain, *same, _ = run(byte_tokenizer, speculate=False, **options)
    ahead, *got, _ = run(byte_tokenizer, speculate=True, **options)
    assert got == same
    assert (ahead.tokens, ahead.reason) == (plain.tokens, plain.reason)


def test_a_text_that_repeats_itself_takes_fewer_forward_passes(byte_tokenizer):
    plain, *_, every = run(byte_tokenizer, speculate=False, max_tokens=90)
    ahead, *_, fewer = run(byte_tokenizer, speculate=True, max_tokens=90)
    assert ahead.tokens == plain.tokens
    assert len(set(plain.tokens[30:])) < 20  # a greedy tiny model goes in circles
    assert len(fewer) < 0.7 * len(every)
    assert 1 < max(fewer[1:]) <= 1 + MOST


def test_it_stops_where_it_costs_more_than_it_saves(byte_tokenizer):
    costly = {"speculate": True, "max_tokens": 480, "context": 520, "temperature": 1.0}
    _, _, _, cheap = run(byte_tokenizer, **costly, prompt=REPETITIVE)
    _, _, _, dear = run(byte_tokenizer, **costly, prompt=REPETITIVE, seconds=lambda count: 2.0 * count - 1)
    tried = sum(count > 1 for count in dear[1:])
    assert 0 < tried <= 6  # rests of 16, 32, … tokens
    assert tried < sum(count > 1 for count in cheap[1:])


def test_rests_grow_while_it_does_not_pay_and_start_small_again():
    balance = Balance()
    rests = []
    for proposed in itertools.repeat(2, 10):
        rests.append(0)
        while not balance.most:
            balance.plain(1.0)
            rests[-1] += 1
        balance.tried(proposed, 0, 2.0)
    assert rests == [16, 16, 32, 64, 128, 256, 512, 1024, 1024, LONGEST_REST]
    while not balance.most:
        balance.plain(1.0)
    balance.tried(2, 2, 1.5)
    assert balance.most == 4
    balance.tried(4, 1, 1.5)
    assert balance.most == 1
    balance.tried(1, 0, 100.0)
    for _ in range(16):
        assert not balance.most
        balance.plain(1.0)
    assert balance.most == 1


def test_a_reader_that_goes_away_leaves_a_session_that_goes_on(byte_tokenizer):
    texts = []
    for speculate in (False, True):
        held = []
        with TINY.session(context=256) as session:
            options = {"cached": held, "speculate": speculate, "clock": lambda: 0.0, "max_tokens": 100}
            generation = generate(session, byte_tokenizer, REPETITIVE, **options)
            for _ in itertools.islice(generation, 50):
                pass
            generation.close()
            drawn = list(generation.result.tokens)
            again = generate(session, byte_tokenizer, [*REPETITIVE, *drawn, 3], **options)
            texts.append((drawn, "".join(again), again.result.tokens))
            assert again.result.cached_tokens >= len(REPETITIVE) + len(drawn) - 1
    assert texts[0] == texts[1]


def test_logits_are_those_of_single_steps():
    tokens = TINY.tokens(16)
    with TINY.session() as session, TINY.session() as single:
        at_once = session.forward(tokens, 16)
        assert at_once.tobytes() == np.concatenate([single.forward([token]) for token in tokens]).tobytes()
