"""Folders as exported: transformers computes what penjing computes, from a folder of codes and from a packed file."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.format.pack import dequantize
from penjing.runtime.reference import Decoder
from penjing.stages.exports import export
from penjing.stages.pack import pack
from penjing.stages.quantize import quantize

#: plain, tied with biases, fused by slices, fused by interleaved rows, norms stored minus one
FAMILIES = ["llama", "llama-tied-biased", "phi3", "gpt_neox", "gemma3_text"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same(tiny_model, tmp_path, family, packed):
    from transformers import AutoModelForCausalLM

    tiny = tiny_model(family)
    quantize(open_checkpoint(tiny.path), tmp_path / "child", spec={"bits": 4, "group_size": 4})
    child = open_checkpoint(tmp_path / "child")
    codes = {name: dequantize(layout, child.packed(name)) for name, layout in child.quantized.items()}
    if packed:
        pack(child, tmp_path / "child.penjing", float_kind="f32")
        child = open_checkpoint(tmp_path / "child.penjing")
    done = export(child, tmp_path / "out", to="hf")
    assert done.bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    again = open_checkpoint(tmp_path / "out")
    assert again.architecture == child.architecture
    assert not again.quantized
    weights = {part.name: again.read_part(part) for part in again.parts()}
    for name, wanted in codes.items():
        np.testing.assert_array_equal(weights[name], wanted)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        logit_TV = model(torch.from_numpy(tiny.token_T)[None]).logits[0].numpy()
    found = Decoder(again.architecture, weights).forward(tiny.token_T)
    assert np.abs(logit_TV - found).max() <= tiny.tolerance()


def test_a_file_without_the_config_is_told(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("penjing.stages.pack._provenance", lambda checkpoint, settings: {})
    pack(open_checkpoint(tiny_model("llama").path), tmp_path / "old.penjing")
    with pytest.raises(PenjingError, match="does not carry the config"):
        export(open_checkpoint(tmp_path / "old.penjing"), tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()


def test_a_killed_export_goes_on(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("penjing.stages.exports.hf._SHARD_BYTES", 1 << 13)
    checkpoint = open_checkpoint(tiny_model("llama").path)
    export(checkpoint, tmp_path / "whole", to="hf")
    seen = []

    def stop(name, done, total):
        seen.append(name)
        if len(seen) == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, tmp_path / "out", to="hf", progress=stop)
    assert not (tmp_path / "out").exists()
    export(checkpoint, tmp_path / "out", to="hf", progress=lambda name, done, total: seen.append(name))
    assert len(seen) < 2 * len(checkpoint.tensors)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
