"""Layers with a window keep little more than it: the same bits as ever, and what can no longer be gone back to is told.

csrc/tests/test_engine.cpp compares such sessions with one that keeps everything, byte for byte.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from runtime.random_models import BASE, Tiny, codes_layout
from runtime.test_session import KEPT, assert_close, assert_near_rounded

from penjing.errors import PenjingError
from penjing.runtime import binding
from penjing.runtime.binding import WAY_BACK, EngineError
from penjing.runtime.generate import PREFILL_BLOCK, generate
from penjing.runtime.prefix_cache import LEAST_TOKENS, PrefixCache
from penjing.runtime.speculate import MOST

ARCH = dataclasses.replace(BASE, num_layers=3, layer_rope=(0, -1, 0), layer_window=(70, 0, 9), vocab_size=257)
TINY = Tiny(ARCH, codes_layout(4, 8))
TEXT = TINY.tokens(700)
LEAST = len(TEXT) - WAY_BACK


def refused(session, call):
    before, tokens = session.lengths, session.tokens()
    with pytest.raises(EngineError, match="layers with a window forgot") as error:
        call()
    assert error.value.status == binding.FORGOTTEN
    assert (session.lengths, session.tokens()) == (before, tokens)


def test_the_header_says_the_same():
    header = (Path(__file__).parents[2] / "csrc/include/penjing.h").read_text()
    assert re.search(r"#define PJ_WAY_BACK (\d+)", header)[1] == str(WAY_BACK)
    assert re.search(r"PJ_FORGOTTEN = (\d+)", header)[1] == str(binding.FORGOTTEN)
    assert max(PREFILL_BLOCK, MOST) <= WAY_BACK  # what generation takes back is there


def test_floats_match_the_reference():
    tiny = Tiny(ARCH)
    with tiny.session(context=1024) as session:
        assert_close(np.concatenate([session.forward(part, len(part)) for part in np.split(TEXT, 7)]), tiny, TEXT)


@pytest.mark.parametrize("kv", KEPT)
def test_codes_match_the_reference(kv):
    with TINY.session(context=1024, kv=kv, threads=2) as session:
        assert_near_rounded(session.forward(TEXT, len(TEXT)), TINY, TEXT, kv=KEPT[kv])


@pytest.mark.parametrize(("kv", "element"), [("f32", 4), ("f16", 2)])
def test_what_is_not_seen_any_more_takes_no_memory(kv, element):
    context, rings = 4096, 384 + 320  # 69 + WAY_BACK and 8 + WAY_BACK, in spans of 64
    everywhere = Tiny(dataclasses.replace(ARCH, layer_window=(0, 0, 0)), codes_layout(4, 8))
    with TINY.session(context=context, kv=kv) as session, everywhere.session(context=context, kv=kv) as whole:
        position = 2 * ARCH.num_kv_heads * ARCH.head_dim * element
        assert whole.nbytes - session.nbytes == (2 * context - rings) * position
    with TINY.session(context=320, kv=kv) as session, everywhere.session(context=320, kv=kv) as whole:
        assert whole.nbytes == session.nbytes


def test_one_can_go_back_a_little_or_to_the_beginning():
    with TINY.session(context=1024, sequences=2) as session:
        expected = session.forward(TEXT, len(TEXT))
        assert session.least_length() == LEAST
        assert session.least_length(1) == 0
        for length in (1, LEAST - 1):
            refused(session, lambda length=length: session.truncate(length))
            refused(session, lambda length=length: session.fork(0, 1, length))
        for length in (699, LEAST, 600):
            session.truncate(length)
            session.fork(0, 1)
            assert session.least_length() == session.least_length(1) == LEAST
            for sequence in (0, 1):
                rest = session.forward(TEXT[length:], len(TEXT) - length, sequence=sequence)
                assert rest.tobytes() == expected[length:].tobytes()
        session.truncate(0)
        assert session.least_length() == 0
        assert session.forward(TEXT, len(TEXT)).tobytes() == expected.tobytes()
        with pytest.raises(PenjingError, match="sequence 2"):
            session.least_length(2)


def test_a_short_text_can_be_cut_to_any_length():
    text = TEXT[:320]
    with TINY.session(context=1024) as session:
        expected = session.forward(text, len(text))
        for length in (319, 5, 1):
            assert session.least_length() == 0
            session.truncate(length)
            assert session.forward(text[length:], len(text) - length).tobytes() == expected[length:].tobytes()


@pytest.mark.parametrize(("added", "left"), [(WAY_BACK, 400), (WAY_BACK + 1, 0)])
def test_a_call_that_fails_is_taken_back_as_far_as_it_can_be(added, left):
    tiny = Tiny(ARCH)
    table = tiny.tensors["embed.weight"] = tiny.tensors["embed.weight"].copy()
    text = np.where(TEXT == 7, 8, TEXT)
    with tiny.session(context=1024, sequences=2) as session:
        expected = session.forward(text, len(text))
        session.truncate(0)
        session.forward(text[:400])
        session.forward(text[:500], sequence=1)
        value, table[0, 0, 7] = table[0, 0, 7], np.nan  # row 7 of the embedding: token 7 is poison
        with pytest.raises(EngineError, match="not finite"):
            session.forward([*text[:3], *text[400 : 400 + added - 1], 7], sequence=[1] * 3 + [0] * added)
        table[0, 0, 7] = value
        assert session.lengths == (left, 500)
        assert session.tokens() == text[:left].tolist()
        assert session.forward(text[left:], 300).tobytes() == expected[400:].tobytes()
        assert session.forward(text[500:], 200, sequence=1).tobytes() == expected[500:].tobytes()


def test_another_adapter_begins_afresh():
    from runtime.test_adapters import random_adapter

    with TINY.session(context=1024) as session:
        session.load_adapter(random_adapter(ARCH), name="a")
        session.use_adapter("a")
        expected = session.forward(TEXT, len(TEXT))
        session.use_adapter(None)
        assert session.least_length() == 0
        plain = session.forward(TEXT, len(TEXT))
        session.use_adapter("a")
        assert session.forward(TEXT, len(TEXT)).tobytes() == expected.tobytes() != plain.tobytes()
        session.truncate(600)
        assert session.forward(TEXT[600:], 100).tobytes() == expected[600:].tobytes()


def other_from(place):
    """The text with all tokens from there on changed."""
    return np.concatenate([TEXT[:place], (TEXT[place:] + 1) % ARCH.vocab_size])


def text_of(session, tokenizer, prompt, held, **options):
    options = {"max_tokens": 60, "cached": held, "clock": lambda: 0.0} | options
    generation = generate(session, tokenizer, [int(token) for token in prompt], **options)
    text = "".join(generation)
    assert session.tokens() == held
    return text, generation.result.cached_tokens


@pytest.mark.parametrize("speculate", [False, True])
def test_generation_goes_back_where_it_can_and_begins_again_where_not(byte_tokenizer, speculate):
    near, far = other_from(550), other_from(100)
    held = []
    with TINY.session(context=1024) as session:
        for prompt, cached in ((TEXT, 0), (TEXT, 699), (near, 550), (far, 0), (far, 699), (TEXT[:50], 0)):
            with TINY.session(context=1024) as fresh:
                expected, _ = text_of(fresh, byte_tokenizer, prompt, [])
            assert text_of(session, byte_tokenizer, prompt, held, speculate=speculate) == (expected, cached)


def test_speculation_takes_back_what_was_not_drawn(byte_tokenizer):
    repeating = np.tile(TEXT[:40], 10)
    with TINY.session(context=1024) as plain, TINY.session(context=1024) as session:
        expected = text_of(plain, byte_tokenizer, repeating, [], max_tokens=400)
        assert text_of(session, byte_tokenizer, repeating, [], max_tokens=400, speculate=True) == expected


@pytest.mark.parametrize("kv", ["f16", "f32", "i8"])
def test_a_saved_prefix_goes_on_where_it_can_be_cut(tmp_path, kv):
    with TINY.session(context=1024, kv=kv) as session:
        expected = session.forward(TEXT, len(TEXT))
        session.save_prefix(tmp_path / "at once")
    with TINY.session(context=700, kv=kv, threads=2) as session:
        for part in np.split(TEXT, 100):
            session.forward(part)
        session.save_prefix(tmp_path / "bit by bit")
    path = tmp_path / "at once"
    assert path.read_bytes() == (tmp_path / "bit by bit").read_bytes()
    everywhere = Tiny(dataclasses.replace(ARCH, layer_window=(0, 0, 0)), codes_layout(4, 8))
    with everywhere.session(context=1024, kv=kv) as session:
        session.forward(TEXT)
        session.save_prefix(tmp_path / "whole")
    assert path.stat().st_size < 0.7 * (tmp_path / "whole").stat().st_size
    with TINY.session(context=2000, sequences=2, kv=kv) as session:
        session.forward(TINY.tokens(1500, seed=3))  # to be replaced
        for length in (699, LEAST):
            assert session.load_prefix(path) == TEXT.tolist()
            assert session.least_length() == LEAST
            refused(session, lambda: session.truncate(LEAST - 1))
            session.truncate(length)
            assert session.forward(TEXT[length:], len(TEXT) - length).tobytes() == expected[length:].tobytes()
        session.load_prefix(path, sequence=1)
        session.save_prefix(tmp_path / "again", sequence=1)
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_a_prefix_after_going_back_has_less_of_a_way_back(tmp_path):
    path = tmp_path / "prefix"
    with TINY.session(context=1024) as session:
        expected = session.forward(TEXT, len(TEXT))
        session.truncate(600)
        session.save_prefix(path)
    with TINY.session(context=1024) as session:
        session.load_prefix(path)
        assert session.least_length() == LEAST
        session.truncate(LEAST)
        assert session.forward(TEXT[LEAST:], WAY_BACK).tobytes() == expected[LEAST:].tobytes()


def test_a_prefix_cache_serves_what_it_can_and_tells_what_not(tmp_path, byte_tokenizer):
    told = []
    cache = PrefixCache(tmp_path / "one", tell=told.append)

    def answer(prompt):
        told.clear()
        with TINY.session(context=1024) as session, TINY.session(context=1024) as fresh:
            held = cache.restore(session, prompt)
            keep = {"after_prompt": lambda evaluated: cache.keep(session, evaluated)}
            text, cached = text_of(session, byte_tokenizer, prompt, held, **keep)
            assert text == text_of(fresh, byte_tokenizer, prompt, [])[0]
        return cached

    near, far = other_from(650), other_from(300)
    assert answer(TEXT) == 0
    assert answer(near) == 650
    assert "650 of 700 tokens" in told[0]
    assert answer(far) == 0
    assert f"shares 300 tokens with the prompt, but layers with a window can go on from {LEAST} tokens" in told[0]
    assert "kept in" in told[1]
    assert answer(far[: LEAST + 1]) == LEAST
    assert answer(far[:LEAST]) == 0  # its last token gives the logits, so it would be cut to one less
    assert f"shares {LEAST} tokens" in told[0]
    with TINY.session(context=1024) as session:  # what a session holds itself counts only where it can be cut to that
        cache = PrefixCache(tmp_path / "two/", tell=told.append)
        session.forward(TEXT[: 300 + LEAST_TOKENS])
        cache.keep(session, 300)
        session.forward(TEXT[300 + LEAST_TOKENS :])
        assert cache.restore(session, far) == TEXT[: 300 + LEAST_TOKENS].tolist()
        assert session.least_length() <= 300
