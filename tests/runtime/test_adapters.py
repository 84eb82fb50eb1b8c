"""Adapters in the engine: what merged weights give, each sequence its own, the same bits however work is shared."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from runtime.random_models import BASE, FEATURES, Tiny, assert_close, assert_near_rounded, codes_layout

from penjing.errors import PenjingError
from penjing.format.adapter import Adapter, Addition, write_adapter
from penjing.runtime import binding
from penjing.runtime.reference import Decoder

ARCH = dataclasses.replace(BASE, layer_window=(7, 0))
TINY = Tiny(ARCH, codes_layout(4, 8))


def random_adapter(arch, *, rank=3, seed=5, only=None, dtype=np.float32, size=0.5):
    """Additions about half as large as the weights; ranks differ from matrix to matrix."""
    rng = np.random.default_rng(seed)
    additions = {}
    for number, (name, (outputs, inputs)) in enumerate(arch.matrix_shapes().items()):
        if not name.startswith("layers.") or (only and name.rsplit(".", 1)[-1] not in only):
            continue
        r = rank + number % 2
        a = rng.standard_normal((r, inputs)) / np.sqrt(inputs)
        b = size * rng.standard_normal((outputs, r)) / np.sqrt(r)
        additions[name] = Addition(a.astype(dtype), b.astype(dtype))
    return Adapter(additions)


class Adapted:
    """A tiny model whose reference has an adapter, for the comparisons of test_session."""

    def __init__(self, tiny, adapter):
        self.arch, self.adapter = tiny.arch, {n: (x.a, x.b) for n, x in adapter.additions.items()}
        self.weights, self._tiny = tiny.weights, tiny

    def reference(self, dtype=np.float64, **options):
        return self._tiny.reference(dtype, adapter=self.adapter, **options)


def merged(tiny, adapter):
    """float64 weights with the additions in them."""
    weights = {name: weight.astype(np.float64) for name, weight in tiny.weights.items()}
    for name, x in adapter.additions.items():
        weights[name] = weights[name] + x.b.astype(np.float64) @ x.a.astype(np.float64)
    return weights


def speak(session, adapter, tokens, **where):
    name = session.load_adapter(adapter, name=f"a{len(session.adapters)}")
    session.use_adapter(name, **where)
    return session.forward(tokens, len(tokens))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("feature", FEATURES)
def test_an_adapter_gives_what_merged_weights_give(feature, dtype):
    tiny = Tiny(dataclasses.replace(BASE, **FEATURES[feature]))
    adapter, tokens = random_adapter(tiny.arch, dtype=dtype), tiny.tokens(41)
    with tiny.session() as session:
        plain = session.forward(tokens, len(tokens))
        got = speak(session, adapter, tokens)
    assert_close(got, Adapted(tiny, adapter), tokens)
    exact = Decoder(tiny.arch, merged(tiny, adapter)).forward(tokens)
    reference = Adapted(tiny, adapter).reference().forward(tokens)
    np.testing.assert_allclose(reference, exact, atol=1e-11 * np.abs(exact).max())  # float64: another order of sums
    assert np.abs(got - plain).max() > 0.1 * np.abs(plain).max()


@pytest.mark.parametrize("only", ["q", "k", "v", "o", "gate", "up", "down", "kd"])
def test_one_matrix_at_a_time(only):
    parts = {"kd": ("k", "down")}.get(only, (only,))
    tiny = Tiny(BASE)
    adapter, tokens = random_adapter(BASE, only=parts, rank=1), tiny.tokens(9)
    with tiny.session() as session:
        assert_close(speak(session, adapter, tokens), Adapted(tiny, adapter), tokens)


def test_codes_with_an_adapter_match_the_reference():
    adapter, tokens = random_adapter(ARCH), TINY.tokens(20)
    with TINY.session() as session:
        got = speak(session, adapter, tokens)
    exact = Adapted(TINY, adapter).reference().forward(tokens)
    smooth = Decoder(ARCH, TINY.weights, adapter=Adapted(TINY, adapter).adapter).forward(tokens)
    effect, error = (np.sqrt(np.mean((x - exact) ** 2)) for x in (smooth, got))
    assert 0 < effect < 0.1 * np.sqrt(np.mean(exact**2))
    assert error < 1.5 * effect  # see assert_near_rounded
    with TINY.session() as session:
        assert_near_rounded(session.forward(tokens, len(tokens)), TINY, tokens)  # untouched without one


@pytest.mark.parametrize("layout_of", [None, codes_layout(4, 8)])
def test_threads_splits_and_neighbours_do_not_change_a_bit(layout_of):
    tiny = Tiny(ARCH, layout_of)
    adapters = [random_adapter(ARCH, seed=seed, rank=rank) for seed, rank in ((1, 2), (2, 16), (3, 33))]
    tokens = tiny.tokens(300)
    expected = []
    for adapter in [None, *adapters]:
        with tiny.session(context=300) as session:
            expected.append(speak(session, adapter, tokens) if adapter else session.forward(tokens, 300))
    for threads in (1, 2, 3):
        with tiny.session(context=300, sequences=4, threads=threads) as session:
            for sequence, adapter in enumerate(adapters, start=1):
                name = session.load_adapter(adapter, name=str(sequence))
                session.use_adapter(name, sequence=sequence)
            rng, at = np.random.default_rng(threads), [0] * 4
            while min(at) < 300:
                call = [int(s) for s in rng.permutation(4) for _ in range(min(300 - at[s], rng.choice([0, 1, 40])))]
                places = [(s, at[s] + call[:i].count(s)) for i, s in enumerate(call)]
                at = [count + call.count(s) for s, count in enumerate(at)]
                if call:
                    logits = session.forward([tokens[i] for _, i in places], len(call), sequence=call)
                    for got, (s, i) in zip(logits, places, strict=True):
                        assert got.tobytes() == expected[s][i].tobytes()


def test_changing_the_adapter_forgets_and_comes_back():
    one, two = random_adapter(ARCH, seed=1), random_adapter(ARCH, seed=2)
    tokens = TINY.tokens(9)
    with TINY.session(sequences=2) as session:
        plain = session.forward(tokens, 9)
        other = session.forward(tokens, 9, sequence=1)
        first = speak(session, one, tokens)
        assert session.lengths == (9, 9)
        second = speak(session, two, tokens)
        assert session.adapters == ("a0", "a1")
        session.use_adapter("a1")  # the one it has: nothing is forgotten
        assert session.tokens() == tokens.tolist()
        session.use_adapter("a0")
        assert session.tokens() == []
        assert session.length == 0
        assert session.adapter() == "a0"
        assert session.forward(tokens, 9).tobytes() == first.tobytes() != second.tobytes()
        session.use_adapter(None)
        assert session.forward(tokens, 9).tobytes() == plain.tobytes() == other.tobytes()
        assert session.tokens(1) == tokens.tolist()
        session.unload_adapter("a0")
        assert session.adapters == ("a1",)


def test_a_fork_takes_the_adapter_over():
    tokens = TINY.tokens(20)
    with TINY.session(sequences=2) as session:
        expected = speak(session, random_adapter(ARCH), tokens)
        session.fork(0, 1, 11)
        assert session.adapter(1) == "a0"
        assert session.forward(tokens[11:], 9, sequence=1).tobytes() == expected[11:].tobytes()


def test_a_prefix_belongs_to_its_adapter(tmp_path):
    tokens, path = TINY.tokens(20), tmp_path / "prefix"
    with TINY.session() as session:
        expected = speak(session, random_adapter(ARCH), tokens)
        session.truncate(15)
        session.save_prefix(path)
    with TINY.session() as session:
        with pytest.raises(PenjingError, match="another model, adapter"):
            session.load_prefix(path)
        session.use_adapter(session.load_adapter(random_adapter(ARCH, seed=6), name="other"))
        with pytest.raises(PenjingError, match="another model, adapter"):
            session.load_prefix(path)
        session.use_adapter(session.load_adapter(random_adapter(ARCH), name="same"))
        session.load_prefix(path)
        assert session.forward(tokens[15:], 5).tobytes() == expected[15:].tobytes()


def test_what_cannot_be_is_told_and_changes_nothing(tmp_path):
    tokens = TINY.tokens(5)
    with TINY.session() as session:
        path = tmp_path / "mine.adapter"
        write_adapter(path, random_adapter(ARCH))
        assert session.load_adapter(path) == "mine"
        before = session.forward(tokens, 5)
        for wrong, message in (
            (lambda: session.load_adapter(path), "'mine' is loaded"),
            (lambda: session.use_adapter("yours"), "no adapter called 'yours'"),
            (lambda: session.use_adapter("mine", sequence=1), "sequence 1"),
            (lambda: session.unload_adapter("yours"), "no adapter called"),
            (lambda: session.load_adapter(Adapter({})), "empty"),
            (lambda: session.load_adapter(random_adapter(ARCH, rank=257)), "rank 25"),
            (lambda: session.load_adapter(random_adapter(dataclasses.replace(ARCH, hidden_size=16))), "do not fit"),
            (lambda: session.load_adapter(tmp_path / "nothing"), "nothing"),
        ):
            with pytest.raises(PenjingError, match=message):
                wrong()
        assert session.tokens() == tokens.tolist()
        session.use_adapter("mine")
        with pytest.raises(PenjingError, match="sequence 0 uses"):
            session.unload_adapter("mine")
        session.use_adapter(None)
        assert session.forward(tokens, 5).tobytes() == before.tobytes()
    with pytest.raises(PenjingError, match="closed"):
        session.use_adapter("mine")


def test_an_addition_that_overflows_is_an_error_of_the_forward():
    with TINY.session() as session:
        session.use_adapter(session.load_adapter(random_adapter(ARCH, only="qk", size=1e37), name="huge"))
        with pytest.raises(binding.EngineError) as caught:
            session.forward(TINY.tokens(3))
        assert caught.value.status == binding.NOT_FINITE
        session.use_adapter(None)
        assert np.isfinite(session.forward(TINY.tokens(3))).all()
