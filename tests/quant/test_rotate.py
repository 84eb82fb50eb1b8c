"""Turning keeps what a layer computes (tests/stages/test_prepare.py) and takes outliers away (here)."""

from __future__ import annotations

import torch

from penjing.checkpoint import open_checkpoint
from penjing.quant import rotate


def test_an_outlier_channel_is_spread(tiny_model):
    parent = open_checkpoint(tiny_model("llama").path)
    weights = {part.name: torch.from_numpy(parent.read_part(part)) for part in parent.parts() if ".1." in part.name}
    weights["layers.1.q"][:, 5] *= 50
    weights["layers.1.v"][3] *= 50
    changed = weights | rotate.change(rotate.Spec(residual=True), parent.architecture, 2, weights)
    before, after = (w["layers.1.q"].norm(dim=0) for w in (weights, changed))
    assert before.max() > 10 * before.median()
    assert after.max() < 4 * after.median()
    size = parent.architecture.head_dim  # channel 3 is spread over its own head only
    before, after = (w["layers.1.v"][:size].norm(dim=1) for w in (weights, changed))
    assert before.max() > 10 * before.median()
    assert after.max() < 4 * after.median()


def test_the_head_is_untied_only_for_the_stream(tiny_model):
    tied = open_checkpoint(tiny_model("llama-tied-biased").path).architecture
    assert rotate.unties(rotate.Spec(residual=True), tied)
    assert not rotate.unties(rotate.Spec(residual=False), tied)
    assert not rotate.unties(rotate.Spec(residual=True), open_checkpoint(tiny_model("llama").path).architecture)
