"""The walk: Hessians of what the quantized layers before put out; interrupted, it goes on to the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.measure import torch_model
from penjing.quant import gptq
from penjing.stages.blocks import Walk, block_of
from penjing.stages.calibrate import calibrate
from penjing.stages.quantize import quantize

#: fused tensors, parallel layers and biases, norms everywhere, a tied head
FAMILIES = ["llama", "llama-tied-biased", "phi3", "gpt_neox", "gemma3_text"]
SPEC = {"bits": 4, "group_size": 4}


def text(windows=3, length=20):
    tokens_WT = np.random.default_rng(7).integers(0, 101, (windows, length), dtype=np.int32)
    return Windows(tokens_WT, tokens_WT.size)


def inputs_of(model, module_name, tokens_WT):
    """What a module of a transformers model reads, [all tokens, I]."""
    seen = []
    handle = model.get_submodule(module_name).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        for tokens_T in tokens_WT:
            model(torch.from_numpy(tokens_T.astype(np.int64))[None])
    handle.remove()
    return torch.cat([x.flatten(0, -2) for x in seen])


@pytest.mark.parametrize(
    ("family", "name", "module"),
    [
        ("llama", "layers.2.down", "model.layers.2.mlp.down_proj"),
        ("llama", "layers.1.q", "model.layers.1.self_attn.q_proj"),
        ("llama", "head", "lm_head"),
        ("phi3", "layers.1.gate", "model.layers.1.mlp.gate_up_proj"),
        ("gpt_neox", "layers.1.up", "gpt_neox.layers.1.mlp.dense_h_to_4h"),
        ("gemma3_text", "layers.2.o", "model.layers.2.self_attn.o_proj"),
    ],
)
def test_hessians_are_those_of_what_the_child_before_puts_out(tiny_model, tmp_path, family, name, module):
    parent = open_checkpoint(tiny_model(family).path)
    quantize(parent, tmp_path / "child", spec={"bits": 3, "group_size": 4})
    child = open_checkpoint(tmp_path / "child")
    block = block_of(name, parent.architecture.num_layers)
    found_II = Walk(parent, text(), child.read_part).hessians(block)[name]
    # a model of the child's weights before the block and the parent's from there on
    mixed = torch_model.load(parent)
    state = torch_model.load(child).state_dict()
    sources = {p.source for p in parent.parts() if block_of(p.name, parent.architecture.num_layers) < block}
    mixed.load_state_dict({key: value for key, value in state.items() if key in sources}, strict=False)
    x_TI = inputs_of(mixed, module, text().tokens_WT)
    wanted_II = x_TI.T @ x_TI
    terms = len(x_TI) + block * (parent.architecture.hidden_size + parent.architecture.intermediate_size)
    assert float((found_II - wanted_II).abs().max()) <= terms * torch.finfo(torch.float32).eps * float(wanted_II.max())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_but_a_lookup_has_a_hessian(tiny_model, family):
    parent = open_checkpoint(tiny_model(family).path)
    walk = Walk(parent, text(1), parent.read_part)
    found = {}
    for block in range(parent.architecture.num_layers + 2):
        found |= walk.hessians(block)
    wanted = {name: cols for name, (_, cols) in parent.architecture.matrix_shapes().items() if name != "embed"}
    assert {name: len(hessian_II) for name, hessian_II in found.items()} == wanted
    assert found["layers.0.q"] is found["layers.0.k"]


def test_gptq_beats_rounding_where_it_counts(tiny_model, tmp_path):
    """On the calibration text itself, which is what GPTQ promises."""
    parent = open_checkpoint(tiny_model("llama").path)
    body = [("embed", {"bits": 16}), ("head", {"bits": 16})]
    for method in ("rtn", "gptq"):
        quantize(
            parent, tmp_path / method, method=method, spec={"bits": 3, "group_size": 4}, overrides=body,
            calibration=text(8),
        )  # fmt: skip
    wanted, *found = (
        inputs_of(torch_model.load(model), "lm_head", text(8).tokens_WT)
        for model in (parent, *(open_checkpoint(tmp_path / method) for method in ("rtn", "gptq")))
    )
    rtn, better = ((each - wanted).square().mean() for each in found)
    assert better < 0.7 * rtn


@pytest.mark.parametrize("stop", [1, 9, 16])
def test_what_was_interrupted_goes_on_with_the_same_hessians(tiny_model, tmp_path, monkeypatch, stop):
    parent = open_checkpoint(tiny_model("llama").path)
    real, calls = gptq.quantize, []

    def fails(spec, weight_OI, hessian_II, prepared):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(spec, weight_OI, hessian_II, prepared)

    arguments = {"method": "gptq", "spec": SPEC, "overrides": [("embed", {"method": "rtn"})], "calibration": text()}
    monkeypatch.setattr(gptq, "quantize", fails)
    with pytest.raises(KeyboardInterrupt):
        quantize(parent, tmp_path / "a", **arguments)
    monkeypatch.setattr(gptq, "quantize", real)
    for name in ("a", "b"):
        quantize(parent, tmp_path / name, **arguments)
    for path in (tmp_path / "a").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_without_text_it_says_so(tiny_model, tmp_path):
    with pytest.raises(PenjingError, match="gptq needs text") as caught:
        quantize(open_checkpoint(tiny_model("llama").path), tmp_path / "child", method="gptq", spec=SPEC)
    assert "--data" in caught.value.attempt


def test_activations_that_overflow_are_told_by_name(tiny_model):
    parent = open_checkpoint(tiny_model("llama").path)

    def read(part, rows=None):
        weight = parent.read_part(part, rows)
        return weight * np.float32(np.inf) if part.name == "layers.0.down" else weight

    with pytest.raises(PenjingError, match="not finite") as caught:
        Walk(parent, text(), read).hessians(2)
    assert caught.value.where.startswith("layers.1.q")


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_gptq_takes_the_fishers_hessian_and_does_not_walk(tiny_model, tmp_path, monkeypatch, family):
    def walks(*_):
        raise AssertionError

    monkeypatch.setattr(Walk, "hessians", walks)
    parent = open_checkpoint(tiny_model(family).path)
    found = calibrate(parent, text(), cache=tmp_path / "importance.safetensors")
    quantize(parent, tmp_path / "child", method="gptq", spec=SPEC, importances=found, calibration=text())
    child = open_checkpoint(tmp_path / "child")
    for part in parent.parts():
        if part.name in found:
            weight_OI = torch.from_numpy(parent.read_part(part))
            wanted = gptq.quantize(gptq.Spec(**SPEC), weight_OI, found[part.name].hessian_II)
            np.testing.assert_array_equal(child.read_part(part), wanted.dequantize().numpy())


def test_what_rows_and_matrices_share_is_prepared_once(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("penjing.stages.codes._CHUNK", 16 * 36)  # many chunks
    real, calls = gptq.prepare, []

    def counts(spec, hessian_II):
        calls.append(len(hessian_II))
        return real(spec, hessian_II)

    parent = open_checkpoint(tiny_model("llama").path)
    settings = {"method": "gptq", "spec": SPEC, "overrides": [("[eh]*", {"method": "rtn"})], "calibration": text()}
    monkeypatch.setattr(gptq, "prepare", counts)
    quantize(parent, tmp_path / "a", **settings)
    arch = parent.architecture
    a_layer = sorted([arch.hidden_size, arch.q_size, arch.hidden_size, arch.intermediate_size])  # qkv, o, gate up, down
    assert sorted(calls) == sorted(arch.num_layers * a_layer)
