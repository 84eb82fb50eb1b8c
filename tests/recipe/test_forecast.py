"""What a fit will take: said before the work, kept in the evidence; a budget that does not do is refused at once."""

import numpy as np
import pytest

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.recipe import fit as module
from penjing.recipe import forecast
from penjing.recipe.forecast import foresee
from penjing.stages.foresight import Budget


@pytest.fixture
def parent(talker):
    return open_checkpoint(talker)


def windows(count, length=64):
    return Windows(np.zeros((count, length), np.int32), count * length)


def ask(parent, folder, *, calibration=2, held_out=2, calibrated=False, minutes=None, budget=None, tell=None):
    return foresee(
        parent,
        windows(calibration),
        windows(held_out),
        folder,
        calibrated=calibrated,
        minutes=minutes,
        budget=budget or Budget(),
        tell=tell,
    )


def test_it_tells_what_it_found(parent, tmp_path):
    said = []
    found = ask(parent, tmp_path, tell=said.append)
    assert found.seconds > 0
    assert len(said) == 1
    assert said[0].startswith("fitting will take about ")
    assert f"{found.peak_rss_bytes / 1e6:,.0f} MB" in said[0]


def test_more_work_takes_longer_and_what_is_done_does_not(parent, tmp_path, monkeypatch):
    monkeypatch.setattr(forecast, "forward_seconds", lambda parent, length: 1.0)
    monkeypatch.setattr(forecast, "calibration_seconds", lambda parent, calibration, hessians: 1000.0)
    few = ask(parent, tmp_path, held_out=2).seconds
    assert ask(parent, tmp_path, held_out=102).seconds - few == pytest.approx(100 * forecast._PROOF_PASSES, rel=0.05)
    assert few - ask(parent, tmp_path, calibrated=True).seconds == pytest.approx(1000, rel=0.05)
    assert ask(parent, tmp_path, minutes=50.0).seconds - few == pytest.approx(3000, rel=0.05)


def test_tuning_counts_where_it_takes_the_most_memory(parent, tmp_path, monkeypatch):
    plain = ask(parent, tmp_path).peak_rss_bytes
    monkeypatch.setattr(forecast, "tuning_memory", lambda *given, **more: {"for all": 10**12})
    assert ask(parent, tmp_path).peak_rss_bytes < 2 * plain
    assert ask(parent, tmp_path, minutes=1.0).peak_rss_bytes == 10**12


@pytest.mark.parametrize(
    ("budget", "minutes", "what", "attempt"),
    [
        (Budget(max_bytes=1000), None, "MB of memory, 0 MB are allowed", "by-block"),
        (Budget(max_seconds=0.0), None, "minutes, 0 are allowed", "rtn"),
        (Budget(max_seconds=60.0), 30.0, "minutes, 1 are allowed", "--minutes"),
    ],
)
def test_a_budget_that_does_not_do_is_refused(parent, tmp_path, budget, minutes, what, attempt):
    with pytest.raises(PenjingError, match=what) as caught:
        ask(parent, tmp_path, budget=budget, minutes=minutes)
    assert attempt in caught.value.attempt


def test_fit_foresees_before_it_begins(parent, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_texts", lambda *given: (None, windows(2), windows(2)))
    monkeypatch.setattr(module, "calibrate", None)  # nothing is begun
    with pytest.raises(PenjingError, match="are allowed"):
        module.fit(parent, tmp_path / "out.penjing", data=None, max_bytes=60_000, budget=Budget(max_seconds=0.0))
