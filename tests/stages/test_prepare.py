"""Prepared models compute what their parents do, whatever the family; a run that was killed goes on."""

from __future__ import annotations

import numpy as np
import pytest

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.measure import torch_decoder
from penjing.quant import rotate
from penjing.stages.calibrate import calibrate
from penjing.stages.prepare import prepare
from penjing.stages.quantize import quantize


def logits(path, token_T):
    return np.concatenate(list(torch_decoder.scorer(open_checkpoint(path)).logits(token_T)))


def importances_of(tiny, folder):
    windows = Windows(np.random.default_rng(1).integers(0, 101, (3, 12)).astype(np.int32), 30)
    return calibrate(open_checkpoint(tiny.path), windows, cache=folder / "cache.safetensors")


def agree(tiny, child, factor=4):
    """Twice the roundings of a plain forward pass on either side: weights were multiplied once and rounded."""
    difference = np.abs(logits(child, tiny.token_T) - tiny.logit_TV).max()
    assert difference <= factor * tiny.tolerance()


def test_awq_computes_the_same(tiny, tmp_path):
    parent = open_checkpoint(tiny.path)
    found = importances_of(tiny, tmp_path)
    prepare(parent, tmp_path / "child", method="awq", spec={"group_size": 4, "bits": 2}, importances=found)
    child = open_checkpoint(tmp_path / "child")
    agree(tiny, tmp_path / "child", factor=8)
    changed = [
        part.name
        for part in parent.parts()
        if part.name.endswith((".down", ".o")) and not np.allclose(parent.read_part(part), child.read_part(part))
    ]
    assert changed


def test_turned_heads_compute_the_same(tiny, tmp_path):
    parent = open_checkpoint(tiny.path)
    prepare(parent, tmp_path / "child", method="rotate")
    agree(tiny, tmp_path / "child")
    part = next(part for part in parent.parts() if part.name == "layers.0.o")
    assert not np.allclose(parent.read_part(part), open_checkpoint(tmp_path / "child").read_part(part), atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "llama-tied-biased", "mistral", "qwen3", "phi3", "granite", "smollm3"])
def test_a_turned_stream_computes_the_same(tiny_model, tmp_path, family):
    tiny = tiny_model(family)
    parent = open_checkpoint(tiny.path)
    prepare(parent, tmp_path / "child", method="rotate", spec={"residual": "yes"})
    child = open_checkpoint(tmp_path / "child")
    assert not child.architecture.tied
    agree(tiny, tmp_path / "child", factor=8)
    norms = [child.read_part(part) for part in child.parts() if part.name.endswith(("attn_norm", "final_norm"))]
    assert all((norm == 1).all() for norm in norms)


def test_transformers_opens_an_untied_child(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    tiny = tiny_model("llama-tied-biased")
    prepare(open_checkpoint(tiny.path), tmp_path / "child", method="rotate", spec={"residual": "yes"})
    torch = pytest.importorskip("torch")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "child").eval()
    with torch.no_grad():
        logit_TV = model(torch.from_numpy(tiny.token_T)[None]).logits[0].numpy()
    assert np.abs(logit_TV - tiny.logit_TV).max() <= 8 * tiny.tolerance()


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_neox", "olmo2"])
def test_a_stream_that_cannot_turn_is_refused(tiny_model, tmp_path, family):
    with pytest.raises(PenjingError, match="cannot turn"):
        prepare(open_checkpoint(tiny_model(family).path), tmp_path / "child", method="rotate", spec={"residual": "yes"})
    assert not list(tmp_path.iterdir())


def test_a_run_that_stopped_goes_on_to_the_same_bytes(tiny_model, tmp_path, monkeypatch):
    parent = open_checkpoint(tiny_model("llama").path)
    real, calls = rotate.change, []

    def stops(*arguments):
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(rotate, "change", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare(parent, tmp_path / "a", method="rotate")
    monkeypatch.setattr(rotate, "change", real)
    prepare(parent, tmp_path / "a", method="rotate")
    prepare(parent, tmp_path / "b", method="rotate")
    assert open_checkpoint(tmp_path / "a").digest == open_checkpoint(tmp_path / "b").digest


def test_what_prepares_does_not_quantize_and_the_other_way_round(tiny_model, tmp_path):
    parent = open_checkpoint(tiny_model("llama").path)
    with pytest.raises(PenjingError, match="awq is not a method of penjing quantize") as caught:
        quantize(parent, tmp_path / "child", method="awq")
    assert "penjing prepare" in caught.value.attempt
    with pytest.raises(PenjingError, match="rtn is not a method of penjing prepare"):
        prepare(parent, tmp_path / "child", method="rtn")
    with pytest.raises(PenjingError, match="needs text"):
        prepare(parent, tmp_path / "child", method="awq")
