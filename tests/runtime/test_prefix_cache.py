"""What prompts begin with, kept over restarts: the same answers, fewer tokens evaluated, nothing of others' touched."""

from __future__ import annotations

import os

import numpy as np
import pytest
from runtime.random_models import BASE, Tiny, codes_layout
from runtime.test_adapters import random_adapter

from penjing.errors import PenjingError
from penjing.runtime import prefix, prefix_cache
from penjing.runtime.prefix_cache import LEAST_TOKENS, PrefixCache

TINY = Tiny(BASE, codes_layout(4, 8))
LONG = 100


class Reader:
    """Opens a session, evaluates a prompt with the cache as `generate` does, and closes it: one run of a program."""

    def __init__(self, path, tiny=TINY, adapter=None, **options):
        self.path, self.tiny, self.adapter, self.options = path, tiny, adapter, {"context": 300} | options
        self.told = []

    def __call__(self, prompt):
        self.told.clear()
        with self.tiny.session(**self.options) as session:
            if self.adapter:
                session.use_adapter(session.load_adapter(self.adapter, name="a"))
            cache = PrefixCache(self.path, tell=self.told.append)
            held = cache.restore(session, prompt)
            assert held == session.tokens()
            shared = next(
                (n for n in range(len(prompt) - 1) if n >= len(held) or held[n] != prompt[n]), len(prompt) - 1
            )
            session.truncate(shared)
            logits = session.forward(prompt[shared:])
            cache.keep(session, len(prompt) - shared)
        return shared, logits.tobytes()


def texts(*seeds, shared=LONG, own=10):
    """Prompts that begin alike and then differ in their first token."""
    return [[*TINY.tokens(shared).tolist(), seed, *TINY.tokens(own, seed=seed + 9).tolist()] for seed in seeds]


@pytest.mark.parametrize("name", ["cache/", "one"])
def test_the_beginning_is_evaluated_once_and_the_answer_stays(tmp_path, name):
    read, plain = Reader(f"{tmp_path}/{name}"), Reader(f"{tmp_path}/other/")
    one, two = texts(1, 2)
    assert read(one) == (0, plain(one)[1])
    (tmp_path / "other").rename(tmp_path / "away")
    assert "kept in" in read.told[0]
    assert read(two) == (LONG, plain(two)[1])
    assert read.told == [f"{LONG} of {len(two)} tokens of the prompt come from {read_path(tmp_path, name)}"]
    assert read(one)[0] == len(one) - 1  # eleven new tokens were not worth a file: the first is still there


def read_path(tmp_path, name):
    return next((tmp_path / name).iterdir()) if name.endswith("/") else tmp_path / name


def test_short_prompts_leave_nothing(tmp_path):
    Reader(f"{tmp_path}/cache/")(TINY.tokens(LEAST_TOKENS - 1).tolist())
    assert not (tmp_path / "cache").exists()


def test_a_folder_keeps_the_best_and_forgets_the_oldest(tmp_path, monkeypatch):
    monkeypatch.setattr(prefix_cache, "MOST_FILES", 2)
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "mine.txt").write_text("not a prefix")
    read = Reader(folder)
    first, second, third = (TINY.tokens(LONG, seed=seed).tolist() for seed in (1, 2, 3))
    for age, prompt in enumerate((first, second)):
        assert read(prompt)[0] == 0
        newest = max(folder.glob("*.prefix"), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1000 + age, 1000 + age))
    assert read(first)[0] == LONG - 1  # used now, so the second is the oldest
    assert read(third)[0] == 0
    assert len(list(folder.glob("*.prefix"))) == 2
    assert read(first)[0] == LONG - 1
    assert read(second)[0] == 0
    assert (folder / "mine.txt").read_text() == "not a prefix"


def test_models_and_adapters_share_a_folder_and_no_state(tmp_path):
    (prompt,) = texts(1)
    readers = [Reader(tmp_path, tiny) for tiny in (TINY, Tiny(BASE, codes_layout(4, 8), seed=1))]
    readers += [Reader(tmp_path, adapter=random_adapter(BASE, seed=seed)) for seed in (1, 2)]
    first = [read(prompt) for read in readers]
    assert [shared for shared, _ in first] == [0] * 4
    assert len({logits for _, logits in first}) == 4
    assert [read(prompt) for read in readers] == [(len(prompt) - 1, logits) for _, logits in first]


def test_a_foreign_or_damaged_file_is_told_and_made_again(tmp_path):
    path = tmp_path / "one"
    (prompt,) = texts(1)
    Reader(path, Tiny(BASE, codes_layout(4, 8), seed=1))(prompt)
    read = Reader(path)
    assert read(prompt)[0] == 0
    assert "of another model" in read.told[0]
    assert "kept in" in read.told[1]
    assert read(prompt)[0] == len(prompt) - 1
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert read(prompt)[0] == 0
    assert "damaged" in read.told[0]
    assert read(prompt)[0] == len(prompt) - 1
    path.write_bytes(path.read_bytes()[:-100])
    assert read(prompt)[0] == 0
    assert "made again" in read.told[0]
    assert read(prompt)[0] == len(prompt) - 1


def test_a_file_of_an_older_version_hides_no_other(tmp_path, monkeypatch):
    one, two = texts(1, 2, own=100)
    with monkeypatch.context() as older:
        older.setattr(prefix, "VERSION", "1")
        older.setattr(prefix_cache, "VERSION", "1")
        Reader(tmp_path)(one)
    read = Reader(tmp_path)
    assert read(two)[0] == 0
    assert "version" in read.told[0]
    assert read(one)[0] == LONG  # of the second text: the first is in the older file


def test_a_context_that_is_too_small_is_told(tmp_path):
    path = tmp_path / "one"
    Reader(path)(TINY.tokens(200).tolist())
    read = Reader(path, context=150)
    assert read(TINY.tokens(120).tolist())[0] == 0
    assert "context" in read.told[0]


@pytest.mark.parametrize("content", [b"", b"my letters", np.arange(5000).tobytes()])
def test_somebody_elses_file_is_left_alone(tmp_path, content):
    path = tmp_path / "letters.txt"
    path.write_bytes(content)
    with pytest.raises(PenjingError, match="no saved prefix"):
        Reader(path)(texts(1)[0])
    assert path.read_bytes() == content
