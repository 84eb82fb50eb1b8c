"""Techniques that learn whole blocks: better blocks in the child, and the same bytes after an interruption."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.measure import torch_decoder
from penjing.quant import autoround
from penjing.stages.calibrate import calibrate
from penjing.stages.quantize import quantize

SPEC = {"bits": 3, "group_size": 4, "steps": 40}


def text():
    tokens_WT = np.random.default_rng(7).integers(0, 101, (4, 20), dtype=np.int32)
    return Windows(tokens_WT, tokens_WT.size)


def made(parent, out, method="autoround", spec=SPEC, overrides=(("[eh]*", {"bits": 16}),)):
    found = calibrate(parent, text(), cache=out.with_suffix(".cache"))
    quantize(parent, out, method=method, spec=spec, overrides=overrides, importances=found, calibration=text())
    return open_checkpoint(out)


def distance(parent, child):
    floats, codes = (torch_decoder.scorer(checkpoint) for checkpoint in (parent, child))
    with torch.no_grad():
        return sum(
            float((floats.hidden(tokens_T) - codes.hidden(tokens_T)).square().sum())
            for tokens_T in torch.from_numpy(text().tokens_WT.astype(np.int64))
        )


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "gemma3_text"])
def test_the_model_comes_closer_to_its_parent(tiny_model, tmp_path, family):
    parent = open_checkpoint(tiny_model(family).path)
    learned = made(parent, tmp_path / "learned")
    start = made(parent, tmp_path / "start", method="scale_search", spec={"bits": 3, "group_size": 4})
    assert distance(parent, learned) < distance(parent, start)


def test_an_interrupted_run_goes_on_to_the_same_bytes(tiny_model, tmp_path, monkeypatch):
    parent = open_checkpoint(tiny_model("llama").path)
    real, calls = autoround.quantize_block, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(autoround, "quantize_block", stops)
    with pytest.raises(KeyboardInterrupt):
        made(parent, tmp_path / "a")
    monkeypatch.setattr(autoround, "quantize_block", real)
    assert made(parent, tmp_path / "a").digest == made(parent, tmp_path / "b").digest


def test_learning_needs_text(tiny_model, tmp_path):
    with pytest.raises(PenjingError, match="learns from text") as caught:
        quantize(open_checkpoint(tiny_model("llama").path), tmp_path / "a", method="autoround", spec=SPEC)
    assert "--data" in caught.value.attempt
