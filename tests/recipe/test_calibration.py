"""Effects of calibration: every combination is there, each is what its windows give, and held-out text stays apart."""

from __future__ import annotations

import random

import pytest

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Corpus
from penjing.errors import PenjingError
from penjing.recipe import calibration as module
from penjing.recipe.calibration import calibration_effects


def text(letters, documents=40):
    rng = random.Random(letters)
    words = ["".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(300)]
    return Corpus(tuple(" ".join(rng.choices(words, k=120)) + "\n" for _ in range(documents)))


TEXTS = {"a": text("abcdefgh"), "b": text("stuvwxyz")}
QUICK = {"held_out": 2, "held_out_length": 64, "settings": {"bits": 3}}


def test_every_combination_is_measured_on_every_text(talker, monkeypatch):
    parent, seen = open_checkpoint(talker), []
    real = module.calibrate
    monkeypatch.setattr(
        module, "calibrate", lambda p, windows, **rest: seen.append(windows) or real(p, windows, **rest)
    )
    rows = calibration_effects(parent, TEXTS, counts=[4, 8], lengths=[32, 64], num_layers=1, **QUICK)
    mixes = [("a",), ("b",), ("a", "b")]
    assert [(r.texts, r.length, r.windows) for r in rows] == [
        (m, n, c) for m in mixes for n in (32, 64) for c in (4, 8)
    ]
    assert [windows.tokens_WT.shape for windows in seen] == [(row.windows, row.length) for row in rows]
    assert all(row.kl.keys() == {"a", "b"} and min(row.kl.values()) > 0 for row in rows)
    assert (seen[1].tokens_WT[:4] == seen[0].tokens_WT).all()  # more begins with fewer
    assert (seen[8].tokens_WT == [*seen[0].tokens_WT[:2], *seen[4].tokens_WT[:2]]).all()  # half of each
    again = calibration_effects(parent, {"a": TEXTS["a"]}, counts=[4, 8], lengths=[32], num_layers=1, **QUICK)
    assert again[1].kl["a"] == rows[1].kl["a"]


def test_gptq_is_tried_too(talker):
    rows = calibration_effects(
        open_checkpoint(talker), {"a": TEXTS["a"]}, counts=[4], lengths=[64], method="gptq", **QUICK
    )
    assert len(rows) == 1
    assert 0 < rows[0].kl["a"] < 1


def test_texts_that_will_not_do_are_refused_before_the_work(talker, monkeypatch):
    monkeypatch.setattr(module, "calibrate", None)
    parent = open_checkpoint(talker)
    with pytest.raises(PenjingError, match="windows of 64 tokens to calibrate on, 5000 are asked for"):
        calibration_effects(parent, {"a": TEXTS["a"]}, counts=[4, 5000], lengths=[64], **QUICK)
    repeated = Corpus(text("abcd", 1).documents * 40)
    with pytest.raises(PenjingError, match="also stands in the calibration text"):
        calibration_effects(parent, {"a": repeated}, counts=[4], lengths=[64], **QUICK)


@pytest.mark.parametrize(("wanted", "layers"), [(1, {1}), (2, {0, 1}), (9, {0, 1})])
def test_layers_are_spread_evenly(talker, wanted, layers):
    names = module._matrices(open_checkpoint(talker), wanted)
    assert {int(name.split(".")[1]) for name in names} == layers
    assert len(names) == 7 * len(layers)
