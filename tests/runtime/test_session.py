"""The engine against the numpy decoder, and everything that must not change its answer."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from runtime.random_models import (
    BASE,
    FEATURES,
    Tiny,
    assert_close,
    assert_near_rounded,
    codes_layout,
    mixed_layout,
)

from penjing.errors import PenjingError
from penjing.runtime import binding
from penjing.runtime.reference import round_cached
from penjing.runtime.session import Session

#: what each kind of cache does to keys and values
KEPT = {"f32": None, "f16": np.float16, "i8": round_cached}


@pytest.mark.parametrize("feature", FEATURES)
def test_floats_match_the_reference(feature):
    tiny = Tiny(dataclasses.replace(BASE, **FEATURES[feature]))
    tokens = tiny.tokens(41)
    with tiny.session() as session:
        assert_close(session.forward(tokens, len(tokens)), tiny, tokens)


@pytest.mark.parametrize("kv", KEPT)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_match_the_reference_with_rounded_activations(bits, symmetric, kv):
    tiny = Tiny(BASE, codes_layout(bits, symmetric=symmetric))
    tokens = tiny.tokens(20)
    with tiny.session(kv=kv) as session:
        got = session.forward(tokens, len(tokens))
    assert_near_rounded(got, tiny, tokens, kv=KEPT[kv])


@pytest.mark.parametrize("feature", ["plain", "window", "wide heads", "odd sizes"])
def test_a_cache_of_codes_matches_the_reference_with_rounded_keys_and_values(feature):
    tiny = Tiny(dataclasses.replace(BASE, **FEATURES[feature]))
    tokens = tiny.tokens(41)
    with tiny.session(kv="i8") as session, tiny.session(kv="f32") as exact:
        got = session.forward(tokens, len(tokens))
        assert_near_rounded(got, tiny, tokens, kv=round_cached)
        assert got.tobytes() != exact.forward(tokens, len(tokens)).tobytes()
        assert session.nbytes < exact.nbytes


def test_codes_are_kept_unless_keys_have_a_bias():
    def nbytes(tiny, kv):
        with tiny.session(kv=kv) as session:
            return session.nbytes

    plain, biased = Tiny(BASE, biases=False), Tiny(BASE)
    assert "layers.0.k.bias" in biased.tensors
    assert nbytes(plain, "auto") == nbytes(plain, "i8") != nbytes(plain, "f16")
    assert nbytes(biased, "auto") == nbytes(biased, "f16")


def test_readers_of_one_input_may_differ():
    arch = dataclasses.replace(BASE, hidden_size=48, intermediate_size=32)
    tiny = Tiny(arch, mixed_layout)
    tokens = tiny.tokens(20)
    with tiny.session() as session:
        assert_near_rounded(session.forward(tokens, len(tokens)), tiny, tokens)


FEATURES_AND_STORAGE = [
    *(pytest.param(changes, None, id=f"{feature}, floats") for feature, changes in FEATURES.items()),
    pytest.param({}, codes_layout(4, 8), id="codes"),
    pytest.param({"hidden_size": 48, "intermediate_size": 32}, mixed_layout, id="mixed"),
]


@pytest.mark.parametrize(("changes", "layout_of"), FEATURES_AND_STORAGE)
def test_threads_and_splits_do_not_change_a_bit(changes, layout_of):
    tiny = Tiny(dataclasses.replace(BASE, **changes), layout_of)
    tokens = tiny.tokens(300)  # three blocks of columns, the last one short
    expected = None
    for threads, splits in ((1, [300]), (2, [300]), (3, [1, 2, 130, 4, 5, 31, 127]), (5, [128, 129, 43])):
        with tiny.session(threads=threads, context=300) as session:
            parts = np.split(tokens, np.cumsum(splits)[:-1])
            got = np.concatenate([session.forward(part, len(part)) for part in parts])
            assert session.length == 300
        expected = got if expected is None else expected
        assert got.tobytes() == expected.tobytes()


def test_only_the_last_logits_are_given():
    tiny = Tiny(BASE)
    tokens = tiny.tokens(300)
    with tiny.session(context=300, threads=2) as session:
        everything = session.forward(tokens, 300)
        for wanted in (0, 1, 43, 44, 45, 172, 173):
            session.truncate(0)
            last = session.forward(tokens, wanted)
            assert last.shape == (wanted, tiny.arch.vocab_size)
            assert last.tobytes() == everything[300 - wanted :].tobytes()


@pytest.mark.parametrize("window", [1, 15, 16, 17, 64, 130])
def test_windows_shorter_than_the_prompt(window):
    tiny = Tiny(dataclasses.replace(BASE, layer_window=(window, 0)))
    tokens = tiny.tokens(150)
    with tiny.session(context=150) as session:
        assert_close(session.forward(tokens, len(tokens)), tiny, tokens)


def test_truncate_then_continue_is_as_if_never_said():
    tiny = Tiny(dataclasses.replace(BASE, layer_window=(9, 0)))
    kept, said, next_ = tiny.tokens(21), tiny.tokens(30, seed=2), tiny.tokens(7, seed=3)
    with tiny.session() as session, tiny.session() as fresh:
        session.forward(np.concatenate([kept, said]))
        session.truncate(len(kept))
        fresh.forward(kept)
        assert session.length == fresh.length == 21
        assert session.forward(next_, 7).tobytes() == fresh.forward(next_, 7).tobytes()


def test_a_context_can_be_filled_to_the_last_token():
    tiny = Tiny(BASE)
    tokens = tiny.tokens(20)
    with tiny.session(context=20) as session:
        session.forward(tokens[:19])
        with pytest.raises(binding.EngineError, match="2 tokens after 19 do not fit a context of 20") as error:
            session.forward([1, 2])
        assert error.value.status == binding.CONTEXT_FULL
        last = session.forward(tokens[19:])
        assert_close(last, tiny, tokens)


def test_cancel_stops_and_leaves_the_session_as_it_was():
    arch = dataclasses.replace(BASE, hidden_size=256, intermediate_size=1024, num_layers=8, layer_rope=(0,) * 8)
    tiny = Tiny(dataclasses.replace(arch, layer_window=(0,) * 8))
    tokens = tiny.tokens(4000)
    with tiny.session(context=4096, threads=2) as session:
        before = session.forward(tokens[:10])
        stop = threading.Event()

        def keep_cancelling():
            while not stop.wait(0.001):
                session.cancel()

        canceller = threading.Thread(target=keep_cancelling)
        canceller.start()
        try:
            with pytest.raises(binding.EngineError, match="cancelled") as error:
                session.forward(tokens)
        finally:
            stop.set()
            canceller.join()
        assert error.value.status == binding.CANCELLED
        assert session.length == 10
        session.truncate(0)
        assert session.forward(tokens[:10]).tobytes() == before.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("num_logits", [0, 1])
def test_what_is_not_finite_is_an_error_and_no_more(value, num_logits):
    tiny = Tiny(BASE)
    table = tiny.tensors["embed.weight"] = tiny.tensors["embed.weight"].copy()
    with tiny.session() as session:
        before = session.forward([1, 2, 3])
        table[0, 0, 7] = value  # row 7 of the embedding: token 7 is poison
        with pytest.raises(binding.EngineError, match="not finite") as error:
            session.forward([4, 7, 5], num_logits)
        assert error.value.status == binding.NOT_FINITE
        table[0, 0, 7] = 0
        assert session.length == 3
        session.truncate(0)
        assert session.forward([1, 2, 3]).argmax() == before.argmax()


BAD_CALLS = {
    "no tokens": ([], 0, "no tokens"),
    "two axes": ([[1], [2]], 1, "no tokens"),
    "floats": ([1.0], 1, "must be integers"),
    "negative": ([1, -1], 1, r"token -1 \(number 1\) is outside the vocabulary of 37"),
    "too large": ([37], 1, r"token 37 \(number 0\)"),
    "too large for 32 bits": ([1 << 40], 1, "outside the vocabulary"),
    "more logits than tokens": ([1, 2], 3, "3 logits wanted of 2 tokens"),
    "negative logits": ([1, 2], -1, "-1 logits wanted"),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_bad_calls_are_told_and_change_nothing(call):
    tokens, num_logits, message = BAD_CALLS[call]
    with Tiny(BASE).session() as session:
        with pytest.raises(PenjingError, match=message):
            session.forward(tokens, num_logits)
        assert session.length == 0


def test_bad_lengths_and_options_are_told():
    tiny = Tiny(BASE)
    with tiny.session() as session:
        session.forward([1, 2])
        for length in (-1, 3, 1 << 40):
            with pytest.raises(PenjingError, match="cannot keep"):
                session.truncate(length)
        assert session.length == 2
    for options in ({"context": 0}, {"context": 1 << 30}, {"threads": 0}, {"threads": 1 << 20}, {"kv": "f8"}):
        with pytest.raises(PenjingError):
            tiny.session(**options)
    with pytest.raises(binding.EngineError, match="out of memory") as error:
        Tiny(dataclasses.replace(BASE, head_dim=1 << 16), biases=False).session(context=1 << 24)
    assert error.value.status == binding.OUT_OF_MEMORY


def test_arrays_are_checked_before_the_engine_sees_them():
    tiny = Tiny(BASE, codes_layout())
    name = "layers.1.down"

    def refused(message, **changes):
        tensors = {key: array for key, array in (tiny.tensors | changes).items() if array is not None}
        with pytest.raises(PenjingError, match=message):
            Session.from_tensors(BASE, tiny.layouts, tensors, context=8, threads=1)

    codes = tiny.tensors[f"{name}.codes"]
    refused("layers.1.down.codes is missing", **{f"{name}.codes": None})
    refused("layers.1.down.codes is uint8", **{f"{name}.codes": codes[:, :-1]})
    refused("is int8", **{f"{name}.codes": codes.view(np.int8)})
    refused("one aligned piece", **{f"{name}.codes": np.repeat(codes, 2, axis=1)[:, ::2]})
    refused("layers.1.down.bias is float32", **{f"{name}.bias": np.zeros(25, np.float32)})
    refused("final_norm is missing", final_norm=None)
    refused("embed.bias has no place", **{"embed.bias": np.zeros(37, np.float32)})
    odd = np.frombuffer(b"\0" * (4 * 24 + 1), np.uint8)[1:].view(np.float32)
    refused("one aligned piece", final_norm=odd)
    layouts = {key: layout for key, layout in tiny.layouts.items() if key != "layers.0.up"}
    with pytest.raises(PenjingError, match=r"layers\.0\.up: a layout is missing"):
        Session.from_tensors(BASE, layouts, tiny.tensors, context=8, threads=1)
    wrong = tiny.layouts | {name: dataclasses.replace(tiny.layouts[name], group_size=16)}
    with pytest.raises(PenjingError, match="group_size 16 does not divide 40 inputs"):
        Session.from_tensors(BASE, wrong, tiny.tensors, context=8, threads=1)


def test_a_closed_session_says_so_and_closes_twice():
    session = Tiny(BASE).session()
    session.close()
    session.close()
    session.cancel()
    for use in (lambda: session.forward([1]), lambda: session.truncate(0), lambda: session.length):
        with pytest.raises(PenjingError, match="closed"):
            use()


def test_a_forked_child_is_told_not_to_hang():
    session = Tiny(BASE).session(threads=2)
    session.forward([1])
    pid = os.fork()
    if pid == 0:
        try:
            session.forward([1])
        except PenjingError as error:
            os._exit(0 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert session.forward([2]).shape == (1, 37)


def test_threads_of_python_share_a_session_safely():
    tiny = Tiny(BASE)
    with tiny.session(context=400, threads=2) as session:
        callers = [threading.Thread(target=lambda: [session.forward([3]) for _ in range(50)]) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert session.length == 200


def test_workers_sleep_between_calls():
    with Tiny(BASE).session(threads=4) as session:
        session.forward([1])
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - before < 0.1  # three spinning workers would take 0.3 and more


def test_a_thousand_openings_leave_nothing_behind():
    """LeakSanitizer counts the engine's bytes (csrc/tests/test_engine.cpp); here those of the binding are seen."""
    tiny = Tiny(BASE, codes_layout(4, 8))

    def open_and_close(times):
        for _ in range(times):
            with tiny.session(context=16) as session:
                session.forward([1])

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    open_and_close(100)  # allocators take what they keep
    gc.collect()
    before = resident()
    with tiny.session(context=16) as session:
        at_least = session.nbytes  # what one leaked session would hold, at the least where it is touched
    open_and_close(1000)
    gc.collect()
    assert resident() - before < 20 * at_least
