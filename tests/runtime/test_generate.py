"""Streaming: characters stay whole, stop strings stay hidden, the session stays consistent."""

from __future__ import annotations

import dataclasses
import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.random_models import BASE, Tiny
from tokenizers import Tokenizer, decoders, models, normalizers

from penjing.errors import PenjingError
from penjing.runtime.generate import MOST_HELD_TOKENS, PREFILL_BLOCK, REPLACEMENT, Detokenizer, StopStrings, generate
from penjing.runtime.sampling import Sampler

END = "<end>"


def sentence_pieces() -> Tokenizer:
    """Words begin with a space sign, unknown characters fall back to bytes, as in Llama 2."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghij ", "▁a", "▁b", "▁▁", "bc"]
    merges = [("▁", "a"), ("▁", "b"), ("▁", "▁"), ("b", "c")]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([END])
    return tokenizer


KINDS = ["bytes", "pieces"]


@pytest.fixture(scope="session")
def tokenizers(byte_tokenizer) -> dict[str, Tokenizer]:
    return {"bytes": byte_tokenizer, "pieces": sentence_pieces()}


@pytest.fixture
def say(tokenizers, script_session):
    """Generate a text from a scripted session; gives the generation and the session."""

    def start(text: str, kind: str = "bytes", prompt: str = "a", **options):
        tokenizer = tokenizers[kind]
        prompt_ids, answer = tokenizer.encode(prompt).ids, tokenizer.encode(text).ids
        script = [*prompt_ids, *answer, tokenizer.token_to_id(END)]
        session = script_session(script, tokenizer.get_vocab_size(), context=options.pop("context", 2048))
        options.setdefault("eos", {tokenizer.token_to_id(END)})
        return generate(session, tokenizer, prompt_ids, **options), session

    return start


@pytest.mark.parametrize("kind", KINDS)
@given(st.text(st.sampled_from("abc  é盆景🌲👩‍🌾\n"), max_size=40))
@settings(deadline=None)
def test_pieces_make_the_text_and_none_holds_half_a_character(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    detokenizer = Detokenizer(tokenizer)
    ids = tokenizer.encode(text).ids
    pieces = [*map(detokenizer.add, ids), detokenizer.flush()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any(REPLACEMENT in piece for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.integers(0, 255), max_size=80))
@settings(deadline=None)
def test_any_tokens_stream_without_growing_the_window(tokenizers, kind, ids):
    detokenizer = Detokenizer(tokenizers[kind])
    for token in ids:
        detokenizer.add(token)
        assert len(detokenizer._window) <= 2 * MOST_HELD_TOKENS


@pytest.mark.parametrize("kind", KINDS)
def test_an_unfinished_character_is_dropped_at_the_end(kind, tokenizers):
    tokenizer = tokenizers[kind]
    whole = tokenizer.encode("ab").ids
    for cut in (1, 2):
        detokenizer = Detokenizer(tokenizer)
        ids = whole + tokenizer.encode("盆").ids[-3:][:cut]
        assert "".join([*map(detokenizer.add, ids), detokenizer.flush()]) == "ab"


def test_the_first_word_keeps_its_space(tokenizers):
    tokenizer = tokenizers["pieces"]
    detokenizer = Detokenizer(tokenizer, prompt=tokenizer.encode("a").ids)
    assert detokenizer.add(tokenizer.token_to_id("▁b")) == " b"


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_at_the_first_wherever_pieces_end(pieces, stops):
    text = "".join(pieces)
    filtered = StopStrings(stops)
    out = []
    for piece in pieces:
        out.append(filtered.add(piece))
        if filtered.found:
            break
    out.append(filtered.flush())
    said = "".join(out)
    ends = [text.find(stop) for stop in stops if stop in text]
    assert filtered.found == bool(ends)
    assert not any(stop in said for stop in stops)
    assert text.startswith(said)
    if len(stops) == 1:
        assert said == (text[: ends[0]] if ends else text)


def test_text_is_held_back_only_while_it_may_be_a_stop_string():
    stops = StopStrings(["<|end|>"])
    assert [stops.add(piece) for piece in ["hi <", "|e", "x", " <|end|>tail"]] == ["hi ", "", "<|ex", " "]
    assert stops.found
    assert stops.add("more") + stops.flush() == ""


@pytest.mark.parametrize("stop", ["", "ab", [""], ["a", ""]])
def test_stop_strings_are_a_list_of_texts(stop):
    with pytest.raises(PenjingError, match="stop strings"):
        StopStrings(stop)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_says_when_it_is_done(kind, say):
    generation, _ = say("abc 盆景", kind)
    space = {"bytes": "", "pieces": " "}[kind]  # this tokenizer begins every text with a space
    assert "".join(generation) == space + "abc 盆景"
    assert generation.result.reason == "eos"


def test_stop_string_across_tokens(say):
    generation, _ = say("abc##d", stop=["##"])
    assert "".join(generation) == "abc"
    assert generation.result.reason == "stop"


def test_held_back_text_comes_out_at_the_end(say):
    generation, _ = say("abc#", stop=["##"])
    assert "".join(generation) == "abc#"
    assert generation.result.reason == "eos"


def test_max_tokens(say):
    generation, session = say("abcdef", max_tokens=3)
    assert "".join(generation) == "abc"
    assert generation.result.reason == "length"
    assert len(generation.result.tokens) == 3
    assert session.length == 1 + 2  # the last token is drawn, not fed


def test_a_full_context_ends_the_text(say):
    generation, _ = say("abcdef", context=4)
    assert "".join(generation) == "abcd"  # one of the prompt, three fed, one more drawn
    assert generation.result.reason == "context"


def test_a_prompt_that_does_not_fit_is_an_error_at_once(say):
    with pytest.raises(PenjingError, match="5 tokens does not fit a context of 4"):
        say("x", prompt="aaaaa", context=4)


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"stop": "abc"}, {"prompt": ""}])
def test_impossible_settings_are_refused_at_once(options, say):
    with pytest.raises(PenjingError):
        say("x", **options)


def test_a_reader_that_goes_away_stops_the_work(say):
    generation, session = say("abcdef")
    assert list(itertools.islice(generation, 2)) == ["a", "b"]
    generation.close()
    assert generation.result.reason == "cancelled"
    assert session.length == 2
    assert list(generation) == []


def test_a_long_prompt_goes_in_in_blocks(say):
    _, session = (pair := say("x", prompt="a" * (2 * PREFILL_BLOCK + 3)))
    assert "".join(pair[0]) == "x"
    assert session.blocks[:3] == [PREFILL_BLOCK, PREFILL_BLOCK, 3]


def test_only_what_differs_is_computed_again(tokenizers, script_session):
    tokenizer = tokenizers["bytes"]
    session = script_session(tokenizer.encode("abcdefghijklmnop").ids, tokenizer.get_vocab_size())
    cached: list[int] = []
    first = generate(session, tokenizer, tokenizer.encode("abc").ids, max_tokens=3, cached=cached)
    assert "".join(first) == "def"
    assert cached == session.tokens == tokenizer.encode("abcde").ids
    second = generate(session, tokenizer, tokenizer.encode("abcdxy").ids, max_tokens=1, cached=cached)
    assert "".join(second) == "g"
    assert second.result.cached_tokens == 4
    assert cached == session.tokens == tokenizer.encode("abcdxy").ids
    again = generate(session, tokenizer, tokenizer.encode("abcdxy").ids, max_tokens=1, cached=cached)
    assert "".join(again) == "g"  # the last token is computed again: its logits are needed
    assert again.result.cached_tokens == 5


def test_an_interrupted_session_is_not_believed_beyond_its_length(tokenizers, script_session):
    tokenizer = tokenizers["bytes"]
    session = script_session(tokenizer.encode("abcdef").ids, tokenizer.get_vocab_size())
    cached = tokenizer.encode("abc").ids  # the list says three, the session holds none
    assert "".join(generate(session, tokenizer, tokenizer.encode("abcd").ids, max_tokens=1, cached=cached)) == "e"
    assert session.tokens == tokenizer.encode("abcd").ids


def test_speed_counts_what_was_computed(say):
    ticks = itertools.count()
    generation, _ = say("abcdef", max_tokens=5, clock=lambda: float(next(ticks)))
    "".join(generation)
    result = generation.result
    assert (result.prefill_s, result.decode_s) == (1.0, 1.0)
    assert (result.prefill_tokens_per_s, result.decode_tokens_per_s) == (1.0, 4.0)


def test_the_sampler_sees_prompt_and_answer(say, byte_tokenizer):
    seen = []

    class Recording(Sampler):
        def __call__(self, logits_V, history):
            seen.append(byte_tokenizer.decode(list(history)))
            return super().__call__(logits_V, history)

    "".join(say("bc", sampler=Recording())[0])
    assert seen == ["a", "ab", "abc"]


@pytest.mark.parametrize("speculate", [False, True])
def test_a_cancel_ends_the_text_within_one_token(byte_tokenizer, script_session, speculate):
    session = script_session(byte_tokenizer.encode("words without end, ").ids, 300)
    generation = generate(session, byte_tokenizer, [1, 2, 3], max_tokens=100, speculate=speculate, clock=lambda: 0.0)
    for _ in range(5):
        next(generation)
    before = len(session.blocks)
    generation.cancel()
    assert len("".join(generation)) <= 1
    assert len(session.blocks) <= before + 1
    assert generation.result.reason == "cancelled"
    assert len(generation.result.tokens) <= 6


def test_a_cancel_from_another_thread_ends_it_whatever_is_under_way(byte_tokenizer):
    """Times when the engine works and times when it does not: no cancel is lost, and the session stays usable."""
    tiny = Tiny(dataclasses.replace(BASE, vocab_size=257))
    expected = "".join(tiny_text(tiny, byte_tokenizer))
    with tiny.session(context=400, threads=2) as session:
        for delay in np.linspace(0, 0.01, 20):
            session.truncate(0)
            generation = generate(session, byte_tokenizer, list(range(200)), max_tokens=200)
            timer = threading.Timer(delay, generation.cancel)
            timer.start()
            text = "".join(generation)
            timer.join()
            assert expected.startswith(text)
            assert generation.result.reason in ("cancelled", "length")
        session.truncate(0)
        generation = generate(session, byte_tokenizer, list(range(200)), max_tokens=200)
        text = next(generation)
        stopper = threading.Thread(target=generation.cancel)
        stopper.start()
        stopper.join()  # however fast this machine is, the text is not at its end
        assert expected.startswith(text + "".join(generation))
        assert generation.result.reason == "cancelled"
        assert "".join(generate(session, byte_tokenizer, list(range(200)), max_tokens=200)) == expected


def tiny_text(tiny, tokenizer):
    with tiny.session(context=400) as session:
        yield from generate(session, tokenizer, list(range(200)), max_tokens=200)
