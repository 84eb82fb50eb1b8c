"""Sizes and settings as people type them."""

from __future__ import annotations

import pytest

from penjing.cli._values import corpus, settings, size_bytes, words
from penjing.errors import PenjingError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80MB", 80_000_000),
        ("80 mb", 80_000_000),
        ("76MiB", 76 << 20),
        ("1.5GB", 1_500_000_000),
        (".5k", 500),
        ("1024", 1024),
        ("7B", 7),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text, expected):
    assert size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "80XB", "-1MB", "1e9", "0", "nan", "80MB80", "99999999999TB", "8 0MB"])
def test_what_is_no_size(text):
    with pytest.raises(PenjingError, match="size"):
        size_bytes(text)


def test_settings_and_overrides():
    entries = ["bits=4", "symmetric=False", "embed:bits=8", "layers.*.down:bits=6", "embed:group_size=32", "bits=3"]
    spec, overrides = settings(entries)
    assert spec == {"bits": 3, "symmetric": False}
    assert overrides == [("embed", {"bits": 8, "group_size": 32}), ("layers.*.down", {"bits": 6})]


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("none", None), ("true", True), ("word", "word"), ("-2", -2), ("a=b", "a=b")]
)
def test_values(text, value):
    found = settings([f"key={text}"])[0]["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("entry", ["bits", "=4", "4=bits", ":bits=4", "embed:=4", "", "seed=1", "method=rtn"])
def test_what_is_no_setting(entry):
    with pytest.raises(PenjingError, match="not a setting"):
        settings([entry])


def test_corpus_names(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("words")
    assert corpus(str(file)).documents == ("words",)
    monkeypatch.setattr("penjing.data.python_docs.corpus", lambda: "the documentation")
    assert corpus("python-docs") == "the documentation"
    with pytest.raises(PenjingError, match="no such text"):
        corpus("nothing")


def test_words():
    assert words(" quality, speed ,,") == ["quality", "speed"]
