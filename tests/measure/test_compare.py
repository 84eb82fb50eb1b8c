"""Several models on the same work, and the file that ships against its simulation."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Corpus
from penjing.errors import PenjingError
from penjing.measure import compare as module
from penjing.measure.compare import compare, held_out_windows, num_weights, scorer_of, shipped_vs_simulated
from penjing.measure.quality import Quality, quality

pytest.importorskip("penjing.measure.torch_model", reason="pip install 'penjing[fit]'")

TEXT = Corpus(tuple(f"{i} trees stand in {i % 7} trays. " * 5 for i in range(20)))


def test_the_engine_and_its_simulation_agree(packed_talker: Path) -> None:
    packed = open_checkpoint(packed_talker)
    windows = held_out_windows(packed, TEXT, 64, 5)
    found = shipped_vs_simulated(packed, windows)
    assert found.relative_difference < 1e-3  # keys and values as float16, and no other difference
    assert found.to_json()["shipped"]["perplexity"] == found.shipped.perplexity
    assert found.shipped.perplexity != found.simulated.perplexity  # they really are two computations


@pytest.mark.parametrize("factor", [1.006, 0.994, float("nan")])
def test_a_shipped_model_that_is_another_one_is_refused(
    packed_talker: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    packed = open_checkpoint(packed_talker)
    windows = held_out_windows(packed, TEXT, 64, 2)
    real = module.qualities

    def spoilt(*arguments: Any, **options: Any) -> dict[str, Quality]:
        found = real(*arguments, **options)
        shipped = dataclasses.replace(found["shipped"], perplexity=found["simulated"].perplexity * factor)
        return found | {"shipped": shipped}

    monkeypatch.setattr(module, "qualities", spoilt)
    with pytest.raises(PenjingError, match="from the simulated"):
        shipped_vs_simulated(packed, windows)


def test_rows_have_what_was_asked_for(talker: Path, packed_talker: Path) -> None:
    checkpoints = [open_checkpoint(talker), open_checkpoint(packed_talker)]
    plain, packed = compare(checkpoints, what=["quality"], corpus=TEXT, parent=checkpoints[0], window=64, max_windows=3)
    assert set(plain) == set(packed) == {"model", "bytes", "bits_per_weight", "quality"}
    assert plain["quality"]["kl_to_parent"] == 0.0
    assert plain["quality"]["top1_agreement"] == 1.0
    assert 0 < packed["quality"]["kl_to_parent"] < 1e-3
    assert packed["bytes"] == packed_talker.stat().st_size
    assert packed["bits_per_weight"] == pytest.approx(8 * packed["bytes"] / num_weights(checkpoints[1].architecture))
    alone = compare(checkpoints[1:], what=["quality"], corpus=TEXT, window=64, max_windows=3)
    assert alone[0]["quality"]["perplexity"] == packed["quality"]["perplexity"]


def test_speed_and_memory_are_those_of_packed_models(talker: Path, packed_talker: Path) -> None:
    checkpoints = [open_checkpoint(talker), open_checkpoint(packed_talker)]
    plain, packed = compare(checkpoints, what=["speed", "memory"], threads=1, repeats=1)
    assert set(plain) == {"model", "bytes", "bits_per_weight"}
    assert {"speed", "memory"} <= set(packed)


def test_what_cannot_be_measured(talker: Path, packed_talker: Path) -> None:
    plain = open_checkpoint(talker)
    for what, match in ((["speed"], "packed model"), (["quality"], "on text"), (["beauty"], "beauty"), ([], "nothing")):
        with pytest.raises(PenjingError, match=match):
            compare([plain], what=what)


def test_another_tokenizer_has_no_kl(talker: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(talker, other)
    text = (other / "tokenizer.json").read_text().replace('"a":', '"\u0000":').replace('"b":', '"a":')
    (other / "tokenizer.json").write_text(text.replace('"\u0000":', '"b":'))
    checkpoints = [open_checkpoint(talker), open_checkpoint(other)]
    rows = compare(checkpoints, what=["quality"], corpus=TEXT, window=64, max_windows=2)
    assert rows[0]["quality"]["perplexity"] != rows[1]["quality"]["perplexity"]
    with pytest.raises(PenjingError, match="tokenizer is not the parent's"):
        compare(checkpoints, what=["quality"], corpus=TEXT, parent=checkpoints[0], window=64, max_windows=2)


def test_windows_do_not_depend_on_each_other(packed_talker: Path) -> None:
    packed = open_checkpoint(packed_talker)
    windows = held_out_windows(packed, TEXT, 64, 2)
    with scorer_of(packed, 64) as scorer:
        first = np.concatenate(list(scorer.logits(windows.tokens_WT[0])))
        list(scorer.logits(windows.tokens_WT[1]))
        assert np.array_equal(first, np.concatenate(list(scorer.logits(windows.tokens_WT[0]))))
        assert quality(scorer, windows) == quality(scorer, windows)


def test_quality_is_that_of_the_cache_that_is_asked_for(packed_talker: Path) -> None:
    packed = open_checkpoint(packed_talker)
    settings = {"what": ["quality"], "corpus": TEXT, "window": 64, "max_windows": 2}
    floats, halves, codes = (compare([packed], kv=kv, **settings)[0]["quality"] for kv in ("f32", "f16", "i8"))
    assert halves != codes
    assert codes["perplexity"] == pytest.approx(floats["perplexity"], rel=0.02)
