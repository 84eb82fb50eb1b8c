"""Every point of the curves is in the event file."""

from __future__ import annotations

import sys

import pytest

from penjing.errors import PenjingError
from penjing.train.tensorboard import write_curves


def test_curves_are_there(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    curve = [{"step": step, "loss": 5.0 - step, "lr": 0.5} for step in (1, 2, 3)]
    write_curves(tmp_path, curve, [{"step": 2, "loss": 4.5}])
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "train/lr", "validation/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("validation/loss")] == [(2, 4.5)]


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(PenjingError) as caught:
        write_curves(tmp_path, [], [])
    assert "penjing[tensorboard]" in caught.value.attempt
