"""Calibration: every matrix has an importance of its shape, also where a tensor holds several; kept and read back."""

import numpy as np
import pytest
import torch

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.stages.calibrate import calibrate
from penjing.tensors.statistics import dead_inputs


def windows(seed=0, vocab=101):
    tokens_WT = np.random.default_rng(seed).integers(0, vocab, (2, 24)).astype(np.int32)
    return Windows(tokens_WT, num_bytes=tokens_WT.size)


@pytest.mark.parametrize("case", ["llama", "llama-tied-biased", "phi3", "gpt_neox", "gemma3_text"])
def test_every_matrix_has_an_importance_of_its_shape(tiny_model, tmp_path, case):
    checkpoint = open_checkpoint(tiny_model(case).path)
    found = calibrate(checkpoint, windows(), cache=tmp_path / "c.safetensors")
    shapes = {name: (i.output_KO.shape[1], i.input_KI.shape[1]) for name, i in found.items()}
    assert shapes == checkpoint.architecture.matrix_shapes()


def test_rows_of_a_fused_tensor_go_to_their_part(tiny_model, tmp_path):
    checkpoint = open_checkpoint(tiny_model("gpt_neox").path)
    found = calibrate(checkpoint, windows(), cache=tmp_path / "c.safetensors")
    rows = {part.name: part.rows for part in checkpoint.parts()}
    q, k = found["layers.0.q"], found["layers.0.k"]
    assert torch.equal(q.input_KI, k.input_KI)  # one tensor, one row of inputs
    assert not torch.equal(q.output_KO, k.output_KO)
    assert len(np.arange(120)[rows["layers.0.q"]]) == q.output_KO.shape[1]


def test_it_is_kept_and_only_read_for_the_same_work(tiny_model, tmp_path, monkeypatch):
    checkpoint, cache = open_checkpoint(tiny_model("llama").path), tmp_path / "c.safetensors"
    first = calibrate(checkpoint, windows(), cache=cache)
    content = cache.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("penjing.stages.calibrate.importances", None)  # would be called if it were not read back
        again = calibrate(checkpoint, windows(), cache=cache)
    assert all(torch.equal(first[name].output_KO, again[name].output_KO) for name in first)
    assert all(torch.equal(first[name].input_KI, again[name].input_KI) for name in first)
    calibrate(checkpoint, windows(seed=1), cache=cache)
    assert cache.read_bytes() != content
    calibrate(checkpoint, windows(), cache=cache)
    assert cache.read_bytes() == content  # same seed, same bytes


def test_a_model_that_overflows_is_named(tiny_model, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(tiny_model("llama").path)
    read = checkpoint.read
    monkeypatch.setattr(checkpoint, "read", lambda name, rows=None: np.full_like(read(name, rows), np.nan))
    with pytest.raises(PenjingError, match="not finite"):
        calibrate(checkpoint, windows(), cache=tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


def test_the_matrix_that_overflows_is_named(tiny_model, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(tiny_model("llama").path)
    read = checkpoint.read

    def broken(name, rows=None):
        found = read(name, rows)
        return np.full_like(found, np.inf) if name == "model.layers.1.mlp.up_proj.weight" else found

    monkeypatch.setattr(checkpoint, "read", broken)
    with pytest.raises(PenjingError, match="not finite") as caught:
        calibrate(checkpoint, windows(), cache=tmp_path / "c.safetensors")
    assert "model.layers.1.mlp.up_proj.weight" in caught.value.where


def test_dead_inputs_are_counted(tiny_model, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(tiny_model("llama").path)
    read = checkpoint.read

    def dead(name, rows=None):
        found = read(name, rows)
        if name == "model.layers.2.mlp.up_proj.weight":
            found[3:5] = 0  # what these rows put out is what columns 3 and 4 of down read
        return found

    monkeypatch.setattr(checkpoint, "read", dead)
    found = calibrate(checkpoint, windows(), cache=tmp_path / "c.safetensors")
    assert dead_inputs({"down": found["layers.2.down"], "o": found["layers.2.o"]}) == {"down": 2}
