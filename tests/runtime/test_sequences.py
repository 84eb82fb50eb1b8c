"""Several sequences in one session: each as if it were alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from runtime.random_models import BASE, Tiny, codes_layout

from penjing.errors import PenjingError
from penjing.runtime import binding

MODELS = {
    "floats": Tiny(BASE),
    "codes": Tiny(BASE, codes_layout(4, 8)),
    "window": Tiny(dataclasses.replace(BASE, layer_window=(5, 17), qk_norm="head")),
    "one key-value head": Tiny(dataclasses.replace(BASE, num_kv_heads=1, qk_norm="full")),
}


def alone(tiny, tokens, **options):
    with tiny.session(context=400, **options) as session:
        return session.forward(tokens, len(tokens))


def schedule(rng, lengths):
    """Calls that together feed every sequence: each a list of sequences, runs and single tokens in any order."""
    left, calls = list(lengths), []
    while any(left):
        call = []
        for _ in range(rng.integers(1, 12)):
            sequence = int(rng.integers(len(left)))
            count = min(left[sequence], int(rng.choice([0, 1, 1, 1, 2, 5, 40, 150])))
            left[sequence] -= count
            call += [sequence] * count
        if call:
            calls.append(call)
    return calls


@pytest.mark.parametrize("kv", ["f16", "f32", "i8"])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_any_mix_gives_each_sequence_what_it_gets_alone(model, threads, kv):
    tiny, lengths = MODELS[model], (1, 17, 64, 300, 0, 33)
    texts = [tiny.tokens(length, seed=i) for i, length in enumerate(lengths)]
    expected = [alone(tiny, text, kv=kv) if len(text) else None for text in texts]
    rng = np.random.default_rng(threads)
    with tiny.session(context=300, sequences=len(lengths), threads=threads, kv=kv) as session:
        at = [0] * len(lengths)
        for call in schedule(rng, lengths):
            places = []
            for sequence in call:
                places.append((sequence, at[sequence]))
                at[sequence] += 1
            logits = session.forward([texts[s][i] for s, i in places], len(call), sequence=call)
            for got, (sequence, i) in zip(logits, places, strict=True):
                assert got.tobytes() == expected[sequence][i].tobytes()
        assert session.lengths == lengths
        assert session.length == 1


def test_one_sequence_by_name():
    tiny = MODELS["floats"]
    with tiny.session(sequences=3) as session:
        got = session.forward([1, 2, 3], 3, sequence=2)
        assert session.lengths == (0, 0, 3)
        session.truncate(1, sequence=2)
        assert session.lengths == (0, 0, 1)
    assert got.tobytes() == alone(tiny, [1, 2, 3]).tobytes()


@pytest.mark.parametrize("kv", ["f16", "f32", "i8"])
@pytest.mark.parametrize("kept", [0, 1, 15, 16, 17, 40])
def test_a_fork_goes_on_as_if_it_had_been_told_the_beginning(kept, kv):
    tiny = MODELS["window"]
    text, one, other = tiny.tokens(40), tiny.tokens(30, seed=2), tiny.tokens(30, seed=3)
    with tiny.session(sequences=3, context=80, kv=kv) as session:
        session.forward(tiny.tokens(70, seed=4), sequence=2)  # to be forgotten
        session.forward(text)
        session.fork(0, 2, kept)
        assert session.lengths == (40, 0, kept)
        both = session.forward(np.stack([one, other], 1).ravel(), 60, sequence=[0, 2] * 30)
    assert both[0::2].tobytes() == alone(tiny, np.concatenate([text, one]), kv=kv)[40:].tobytes()
    assert both[1::2].tobytes() == alone(tiny, np.concatenate([text[:kept], other]), kv=kv)[kept:].tobytes()


def test_a_fork_of_everything_and_onto_itself():
    with MODELS["floats"].session(sequences=2) as session:
        session.forward([1, 2, 3, 4], sequence=1)
        session.fork(1, 0)
        assert session.lengths == (4, 4)
        session.fork(1, 1, 2)
        assert session.lengths == (4, 2)


def refused(session, message, call):
    before = session.lengths
    with pytest.raises(PenjingError, match=message):
        call()
    assert session.lengths == before


def test_a_refused_call_changes_no_sequence():
    tiny = MODELS["floats"]
    with tiny.session(sequences=2, context=8) as session:
        session.forward([1, 2, 3], sequence=[0, 1, 1])
        for sequence in (2, -1, [0, 2, 0], [0, -1, 0]):
            refused(session, r"sequence -?\d of 2", lambda s=sequence: session.forward([1, 2, 3], sequence=s))
        for sequence in ([0], [0, 1], [[0, 1, 0]], [0.0, 1.0, 0.0]):
            refused(session, "for 3 tokens", lambda s=sequence: session.forward([1, 2, 3], sequence=s))
        refused(
            session,
            "7 tokens after 2 do not fit a context of 8",
            lambda: session.forward([5] * 8, sequence=[0] + [1] * 7),
        )
        refused(session, "cannot fork 2 tokens of 1", lambda: session.fork(0, 1, 2))
        refused(session, "cannot fork -1", lambda: session.fork(0, 1, -1))
        refused(session, "sequence 2", lambda: session.fork(0, 2))
        refused(session, "sequence 2", lambda: session.truncate(0, sequence=2))
        after = session.forward([4, 5], 2, sequence=[0, 1])
    assert after[0].tobytes() == alone(tiny, [1, 4])[1].tobytes()
    assert after[1].tobytes() == alone(tiny, [2, 3, 5])[2].tobytes()
    for sequences in (0, 1 << 20):
        with pytest.raises(PenjingError, match="sequences"):
            tiny.session(sequences=sequences)


def test_a_sequence_that_is_not_finite_leaves_the_others_as_they_were():
    tiny = Tiny(BASE)
    table = tiny.tensors["embed.weight"] = tiny.tensors["embed.weight"].copy()
    with tiny.session(sequences=2) as session:
        session.forward([1, 2], sequence=[0, 1])
        table[0, 0, 7] = np.nan
        with pytest.raises(binding.EngineError, match="not finite"):
            session.forward([3, 7], sequence=[0, 1])
        table[0, 0, 7] = 0
        assert session.lengths == (1, 1)
        assert session.forward([3]).tobytes() == alone(tiny, [1, 3])[1:].tobytes()
