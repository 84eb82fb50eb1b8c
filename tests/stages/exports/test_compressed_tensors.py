"""Folders of packed integers: transformers opens them, and their weights are ours to float16."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("compressed_tensors", reason="pip install 'penjing[compressed-tensors]'")
import torch

from penjing.checkpoint import open_checkpoint
from penjing.stages.exports import export
from penjing.stages.quantize import quantize

WAYS = [
    {"bits": 4},
    {"bits": 3},
    {"bits": 8},
    {"bits": 4, "symmetric": False},
    {"bits": 5, "symmetric": False},
    {"bits": 6, "method": "rtn"},
]


def weights_of(folder):
    """As the package unpacks them."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    config = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    return model, {name: value.float().numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_weights_are_ours(tiny_model, tmp_path, way):
    tiny = tiny_model("llama")
    method = way.get("method", "rtn")
    spec = {key: value for key, value in way.items() if key != "method"} | {"group_size": 4}
    quantize(open_checkpoint(tiny.path), tmp_path / "child", method=method, spec=spec)
    child = open_checkpoint(tmp_path / "child")
    done = export(child, tmp_path / "out", to="compressed-tensors")
    assert done.types == {f"{spec['bits']} bits, groups of 4": 3 * 7 + 1, "float16": 1}
    assert done.notes == [f"model.embed_tokens.weight: float16, was {child.quantized['embed'].described}"]
    _, found = weights_of(tmp_path / "out")
    for part in child.parts():
        wanted = child.read_part(part)
        # the reader multiplies in float16
        np.testing.assert_allclose(found[part.source], wanted, rtol=2**-11, atol=2**-24)


def test_transformers_computes_with_it(tiny_model, tmp_path):
    tiny = tiny_model("llama")
    quantize(open_checkpoint(tiny.path), tmp_path / "child", spec={"bits": 8, "group_size": 4})
    export(open_checkpoint(tmp_path / "child"), tmp_path / "out", to="compressed-tensors")
    model, _ = weights_of(tmp_path / "out")
    with torch.no_grad():
        logit_TV = model.float()(torch.from_numpy(tiny.token_T)[None]).logits[0].numpy()
    assert 0 < np.abs(logit_TV - tiny.logit_TV).max() < 0.1 * np.abs(tiny.logit_TV).max()


def test_parts_that_differ_become_float(tiny_model, tmp_path):
    """Phi fuses q, k and v: one tensor has one bit width."""
    overrides = [("*.q", {"bits": 8})]
    quantize(open_checkpoint(tiny_model("phi3").path), tmp_path / "child", spec={"group_size": 4}, overrides=overrides)
    done = export(open_checkpoint(tmp_path / "child"), tmp_path / "out", to="compressed-tensors")
    assert [note.split(":")[0] for note in done.notes if "qkv" in note] == [
        f"model.layers.{n}.self_attn.qkv_proj.weight" for n in range(3)
    ]
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert not any("qkv" in target for group in groups.values() for target in group["targets"])
