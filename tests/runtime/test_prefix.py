"""Saved prefixes: as if the text had been evaluated here, or an error and nothing changed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.random_models import BASE, Tiny, codes_layout

from penjing.errors import PenjingError
from penjing.format.safetensors_file import SafetensorsFile, SafetensorsWriter
from penjing.runtime import prefix

TINY = Tiny(dataclasses.replace(BASE, layer_window=(7, 0)), codes_layout(4, 8))


@pytest.mark.parametrize("kv", ["f16", "f32", "i8"])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_a_loaded_prefix_goes_on_as_if_it_had_been_said(tmp_path, length, kv):
    text, more, path = TINY.tokens(length), TINY.tokens(9, seed=2), tmp_path / "prefix"
    with TINY.session(kv=kv, threads=2) as session:
        session.forward(text)
        session.save_prefix(path)
        expected = session.forward(more, 9)
    with TINY.session(kv=kv, context=49, sequences=2) as session:  # another size, another place
        session.forward(TINY.tokens(30, seed=3), sequence=1)  # to be replaced
        assert session.load_prefix(path, sequence=1) == session.tokens(1) == text.tolist()
        assert session.lengths == (0, length)
        assert session.forward(more, 9, sequence=1).tobytes() == expected.tobytes()
        assert session.tokens(1) == [*text.tolist(), *more.tolist()]


def test_the_same_text_gives_the_same_file_whatever_was_forgotten_before(tmp_path):
    with TINY.session() as session, TINY.session() as fresh:
        session.forward(TINY.tokens(60, seed=5))
        session.truncate(0)
        for number, each in enumerate((session, fresh)):
            each.forward([1, 2, 3])
            each.save_prefix(tmp_path / str(number))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("prefix") / "prefix"
    with TINY.session() as session:
        session.forward(TINY.tokens(20))
        session.save_prefix(path)
    return path


def refused(path, message, tiny=TINY, **options):
    with tiny.session(**options) as session:
        before = session.forward([1, 2, 3])
        with pytest.raises(PenjingError, match=message):
            session.load_prefix(path)
        assert session.tokens() == [1, 2, 3]
        session.truncate(2)
        assert session.forward([3]).tobytes() == before.tobytes()


def test_what_does_not_belong_here_is_refused(saved, tmp_path):
    refused(saved, "another model", Tiny(TINY.arch, codes_layout(4, 8), seed=1))
    refused(saved, "another model", Tiny(dataclasses.replace(TINY.arch, layer_window=(6, 0)), codes_layout(4, 8)))
    refused(saved, "kind of cache", kv="f16")
    refused(saved, "20 tokens does not fit a context of 19", context=19)
    refused(tmp_path / "nothing", "prefix|nothing|exist|such")
    with TINY.session() as session:
        with pytest.raises(PenjingError, match="nothing to save"):
            session.save_prefix(tmp_path / "empty")
        with pytest.raises(PenjingError, match="sequence 1"):
            session.load_prefix(saved, sequence=1)
    assert not list(tmp_path.iterdir())


def rewritten(saved, path, *, digest=None, **changes):
    """The file with other tensors or metadata, its digest made to fit unless one is given."""
    with SafetensorsFile(saved) as file:
        arrays = {name: file.raw(name).copy() for name in file.tensors} | changes.pop("arrays", {})
        metadata = dict(file.metadata) | changes
        specs = {
            name: file.tensors.get(name, file.tensors["state"])._replace(shape=a.shape) for name, a in arrays.items()
        }
    least = prefix.least_length(metadata)
    fitting = prefix._digest(metadata["identity"], prefix.Prefix(arrays["tokens"], arrays["state"], least))
    with SafetensorsWriter(path, specs, metadata | {"digest": digest or fitting}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
        writer.finish()
    return path


def test_a_hostile_file_is_refused_even_where_its_digest_fits(saved, tmp_path):
    with SafetensorsFile(saved) as file:
        tokens, state = file.raw("tokens").copy(), file.raw("state").copy()
    path = tmp_path / "hostile"
    rewritten(saved, path)
    with TINY.session() as session:
        assert len(session.load_prefix(path)) == 20  # what is spoiled below was fine
    refused(rewritten(saved, path, digest="0" * 64), "damaged")
    refused(rewritten(saved, path, version="1"), "version")
    for least in ("", "-1", "x", "9" * 5000, "\u0663", "21"):  # the engine takes 0 to 20
        refused(rewritten(saved, path, least=least), "not the state of 20 tokens")
    refused(rewritten(saved, path, least="5", digest=SafetensorsFile(saved).metadata["digest"]), "damaged")
    refused(rewritten(saved, path, format="penjing"), "not a saved prefix")
    refused(rewritten(saved, path, arrays={"more": state}), "no more")
    refused(rewritten(saved, path, arrays={"tokens": tokens[:19]}), "not the state of 19 tokens")
    refused(rewritten(saved, path, arrays={"state": state[:-1]}), "not the state of 20 tokens")
    refused(rewritten(saved, path, arrays={"tokens": tokens[:0], "state": state[:0]}), "no tokens")
    refused(
        rewritten(saved, path, arrays={"tokens": np.where(tokens == tokens[3], 37, tokens)}), "outside the vocabulary"
    )
    with TINY.session() as session:  # a state of nonsense is an error of the next forward, no more
        session.load_prefix(rewritten(saved, path, arrays={"state": np.full_like(state, 0xFF)}))
        with pytest.raises(PenjingError, match="not finite"):
            session.forward([1])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damage_goes_unnoticed(saved, data):
    good = saved.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    spoiled = bytearray(good)
    spoiled[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(good), at]))
    path = saved.with_name("spoiled")
    path.write_bytes(spoiled[:cut])
    with TINY.session() as session:
        try:
            tokens = session.load_prefix(path)
        except PenjingError:
            assert session.length == 0
        else:  # another space in the header, say
            with SafetensorsFile(saved) as file:
                assert at < file.data_start
            assert tokens == TINY.tokens(20).tolist()
