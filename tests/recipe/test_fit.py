"""The main job on a tiny model, whole: within its bytes, proven, resumable, and honest about limits that it misses."""

import functools
import random

import numpy as np
import pytest

from penjing import evidence
from penjing.checkpoint import open_checkpoint
from penjing.data.text import Corpus, load_tokenizer
from penjing.errors import PenjingError
from penjing.format.container import open_container
from penjing.recipe import fit as module
from penjing.recipe.fit import Limits, _check_limits, _choose, fit
from penjing.recipe.search import Option, size


def corpus(documents=80):
    """Words at random: no two documents share 13 of them in a row."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(500)]
    return Corpus(tuple(" ".join(rng.choices(words, k=260)) + "\n" for _ in range(documents)))


@pytest.fixture
def quick(monkeypatch):
    """Shorter windows and fewer of them: the talker is not worth more."""
    monkeypatch.setattr(module, "WINDOW", 128)
    monkeypatch.setattr(module, "CALIBRATION_WINDOWS", 2)
    monkeypatch.setattr(module, "HELD_OUT_WINDOWS", 3)
    monkeypatch.setattr(module, "speeds", lambda paths, progress: [FakeSpeed() for _ in paths])


class FakeSpeed:
    """Timing a model of 40 thousand weights says nothing, and measure/speed.py has tests of its own."""

    def to_json(self):
        return {"decode_tokens_per_s": 100.0}


def test_it_fits_proves_and_keeps_the_evidence(quick, talker, tmp_path):
    parent, out = open_checkpoint(talker), tmp_path / "out.penjing"
    max_bytes = 60_000
    found = fit(parent, out, data=corpus(), max_bytes=max_bytes)
    assert out.stat().st_size <= max_bytes
    assert found.after["bytes"] <= max_bytes < found.before["bytes"]
    assert found.after["quality"]["kl_to_parent"] > 0
    simulated, shipped = found.after["simulated"]["perplexity"], found.after["quality"]["perplexity"]
    assert abs(shipped / simulated - 1) < 0.005
    assert found.after["memory"]["peak_rss_bytes"] > 0
    stages = [record["stage"] for record in evidence.read(tmp_path / "out.run" / "evidence.jsonl")]
    assert stages == ["fit"]
    with open_container(out) as container:
        assert [record["stage"] for record in container.evidence] == ["quantize", "fit"]
        bits = {layout.bits for layout in container.layouts.values()}
    assert len(bits) > 1  # a choice was made
    page = (tmp_path / "out.run" / "report.html").read_text()
    assert "talker" in page
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".penjing"] == ["out.penjing"]


def test_killed_after_quantizing_it_goes_on_and_gives_the_same_file(quick, talker, tmp_path, monkeypatch):
    parent = open_checkpoint(talker)
    fit(parent, tmp_path / "at-once.penjing", data=corpus(), max_bytes=60_000)
    with monkeypatch.context() as patch:
        patch.setattr(module, "pack", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(parent, tmp_path / "killed.penjing", data=corpus(), max_bytes=60_000)
    assert not (tmp_path / "killed.penjing").exists()
    monkeypatch.setattr("penjing.stages.calibrate.importances", None)  # the costly part is not done twice
    fit(parent, tmp_path / "killed.penjing", data=corpus(), max_bytes=60_000)
    with open_container(tmp_path / "at-once.penjing") as one, open_container(tmp_path / "killed.penjing") as other:
        assert one.tensors == other.tensors
        assert all(np.array_equal(one.tensor(name), other.tensor(name)) for name in one.tensors)


def test_minutes_are_spent_on_tuning_and_kept_in_the_evidence(quick, talker, tmp_path, monkeypatch):
    parent, calls = open_checkpoint(talker), []
    # how far training gets in its seconds differs, and at random weights 8-bit activations move perplexity by 0.6%
    loose = functools.partial(module.shipped_vs_simulated, max_difference=0.03)
    monkeypatch.setattr(module, "shipped_vs_simulated", loose)
    monkeypatch.setattr(module, "_texts", lambda *given, kept=module._texts: calls.append(kept(*given)) or calls[-1])
    plain = fit(parent, tmp_path / "plain.penjing", data=corpus(), max_bytes=40_000)
    tuned = fit(parent, tmp_path / "tuned.penjing", data=corpus(), max_bytes=40_000, minutes=0.1)
    assert tuned.after["quality"]["kl_to_parent"] < plain.after["quality"]["kl_to_parent"]
    assert (tmp_path / "tuned.penjing").stat().st_size <= 40_000
    with open_container(tmp_path / "tuned.penjing") as container:
        assert [record["stage"] for record in container.evidence] == ["quantize", "tune", "fit"]
        tuning = container.evidence[1]
    assert tuning["settings"]["minutes"] == 0.1
    assert tuning["after"]["kl_to_parent"] < tuning["before"]["kl_to_parent"]
    learnt, _, held_out = calls[-1]
    held_out_text = parent_text(parent, held_out)
    assert not any(text in document for document in learnt.documents for text in held_out_text)
    # again, what was tuned is not tuned anew
    monkeypatch.setattr(module, "tune", None)
    again = fit(parent, tmp_path / "tuned.penjing", data=corpus(), max_bytes=40_000, minutes=0.1, force=True)
    assert again.after["quality"] == tuned.after["quality"]


def parent_text(parent, windows):
    tokenizer = load_tokenizer(parent.tokenizer_json)
    return [tokenizer.decode(tokens_T.tolist())[20:80] for tokens_T in windows.tokens_WT]


def test_bytes_that_nothing_fits_are_refused_and_nothing_is_left(quick, talker, tmp_path):
    with pytest.raises(PenjingError, match="the smallest choice needs"):
        fit(open_checkpoint(talker), tmp_path / "out.penjing", data=corpus(), max_bytes=1000)
    assert not (tmp_path / "out.penjing").exists()
    record = evidence.read(tmp_path / "out.run" / "evidence.jsonl")[-1]
    assert "the smallest choice needs" in record["failed"]


def test_an_existing_file_is_not_replaced(quick, talker, tmp_path):
    (tmp_path / "out.penjing").write_bytes(b"mine")
    with pytest.raises(PenjingError, match="already there"):
        fit(open_checkpoint(talker), tmp_path / "out.penjing", data=corpus(), max_bytes=60_000)
    assert (tmp_path / "out.penjing").read_bytes() == b"mine"


def test_repeated_text_is_refused(quick, talker, tmp_path):
    repeated = Corpus(corpus(1).documents * 40)
    with pytest.raises(PenjingError, match="also stands in the calibration text"):
        fit(open_checkpoint(talker), tmp_path / "out.penjing", data=repeated, max_bytes=60_000)


OPTIONS = {name: [Option({"bits": bits}, 100 * bits, 4.0**-bits) for bits in (2, 4, 8)] for name in ("a", "b", "c")}


def test_a_limit_of_loss_alone_takes_the_fewest_bytes():
    chosen = _choose(OPTIONS, Limits(max_loss=0.02), beside=0)
    assert sum(option.error for option in chosen.values()) <= np.log1p(0.02)
    fewer = [c for c in (2, 4, 8) if 3 * 100 * c < size(chosen.values())]
    assert all(3 * 4.0**-bits > np.log1p(0.02) for bits in fewer)


def test_a_limit_of_speed_alone_needs_the_device():
    with pytest.raises(PenjingError, match="how small"):
        _choose(OPTIONS, Limits(min_speed=50.0), beside=0)
    chosen = _choose(OPTIONS, Limits(min_speed=1.0, read_bytes_per_s=2000.0), beside=0)
    assert size(chosen.values()) <= 1200


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (Limits(max_bytes=999_999), "1,000,000 bytes"),
        (Limits(max_loss=0.05), "grew by 10.0%"),
        (Limits(min_speed=120.0), "100.0 tokens/s, 120.0 are wanted"),
    ],
)
def test_what_was_measured_is_held_to_every_limit(tmp_path, limits, problem):
    before = {"quality": {"perplexity": 10.0}}
    after = {"bytes": 1_000_000, "quality": {"perplexity": 11.0}, "speed": {"decode_tokens_per_s": 100.0}}
    _check_limits(before, after, Limits(max_bytes=2_000_000, max_loss=0.2, min_speed=90.0), tmp_path)
    with pytest.raises(PenjingError, match=problem):
        _check_limits(before, after, limits, tmp_path)
