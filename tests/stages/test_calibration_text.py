"""Calibration text that will not do is refused, with what to try."""

from __future__ import annotations

import json
import shutil

import pytest

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Corpus
from penjing.errors import PenjingError
from penjing.stages.calibration_text import calibration_windows, model_languages

ENGLISH = (
    "The committee met on Tuesday to discuss whether the bridge across the river should be repaired before the winter, "
    "and most of its members thought that it could wait until the spring, when the water is low and the work is cheap. "
)
GERMAN = (
    "Der Ausschuss traf sich am Dienstag, um zu beraten, ob die Brücke über den Fluss noch vor dem Winter ausgebessert "
    "werden sollte, und die meisten Mitglieder meinten, dass es bis zum Frühling warten könne, wenn das Wasser sinkt. "
)


@pytest.fixture
def english_talker(talker, tmp_path):
    """A copy whose config says what it knows."""
    folder = tmp_path / "talker"
    shutil.copytree(talker, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"language": ["en"]}))
    return open_checkpoint(folder)


def test_text_of_its_language_is_taken(english_talker):
    found = calibration_windows(english_talker, Corpus((ENGLISH * 40,)), length=64, count=8)
    assert found.tokens_WT.shape == (8, 64)


def test_another_language_is_refused(english_talker):
    with pytest.raises(PenjingError, match="most of them in 'de'") as caught:
        calibration_windows(english_talker, Corpus((GERMAN * 40,)), length=64, count=8)
    assert "en" in caught.value.where
    assert "language" in caught.value.attempt


def test_a_few_foreign_pieces_are_no_reason(english_talker):
    found = calibration_windows(english_talker, Corpus((ENGLISH * 40, GERMAN * 10)), length=64, count=8)
    assert len(found.tokens_WT) == 8


def test_a_model_that_does_not_say_takes_any(talker):
    assert model_languages(open_checkpoint(talker)) == []
    assert len(calibration_windows(open_checkpoint(talker), Corpus((GERMAN * 40,)), length=64, count=4).tokens_WT) == 4


def test_too_short_is_refused(talker):
    with pytest.raises(PenjingError, match="4 windows of 64 are the least") as caught:
        calibration_windows(open_checkpoint(talker), Corpus((ENGLISH,)), length=64, count=8)
    assert "512 tokens" in caught.value.attempt


@pytest.mark.parametrize(
    ("card", "languages"),
    [
        ("---\nlanguage:\n- en\n- fr\nlicense: mit\n---\n", ["en", "fr"]),
        ("---\nlicense: mit\nlanguage: de\n---\n", ["de"]),
        ("---\nlanguage: [en, it]\n---\n", ["en", "it"]),
        ("no front matter", []),
    ],
)
def test_a_card_says_languages(talker, tmp_path, card, languages):
    folder = tmp_path / "talker"
    shutil.copytree(talker, folder)
    (folder / "README.md").write_text(card)
    assert model_languages(open_checkpoint(folder)) == languages
