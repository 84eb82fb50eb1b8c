"""Adapter files: written and read back, hostile ones refused; peft's folders give what peft computes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.random_models import BASE
from runtime.test_adapters import random_adapter

from penjing.errors import PenjingError
from penjing.format.adapter import Adapter, Addition, read_adapter, write_adapter
from penjing.format.safetensors_file import SafetensorsWriter, TensorSpec


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_written_is_read(tmp_path, dtype):
    adapter = Adapter(random_adapter(BASE, dtype=dtype).additions, parent="abc")
    for name in ("a", "b"):
        write_adapter(tmp_path / name, adapter)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = read_adapter(tmp_path / "a", BASE)
    assert read.digest == adapter.digest
    assert read.parent == "abc"
    assert read.nbytes == adapter.nbytes
    assert read.additions.keys() == adapter.additions.keys()
    for name, addition in read.additions.items():
        np.testing.assert_array_equal(addition.a, adapter.additions[name].a)
        np.testing.assert_array_equal(addition.b, adapter.additions[name].b)


def test_half_the_width_is_half_the_bytes():
    adapter = random_adapter(BASE)
    half = adapter.rounded("f16")
    assert 2 * half.nbytes == adapter.nbytes
    assert half.digest != adapter.digest
    name = "layers.0.q"
    np.testing.assert_allclose(half.additions[name].a, adapter.additions[name].a, rtol=2**-11, atol=2**-25)
    with pytest.raises(PenjingError, match="too large for float16"):
        random_adapter(BASE, size=1e6).rounded("f16")


def refused(path, message):
    with pytest.raises(PenjingError, match=message):
        read_adapter(path, BASE)


def test_hostile_files_are_refused(tmp_path):
    path = tmp_path / "bad"
    rows, cols = 32, 24  # of layers.0.q

    def write(arrays, **metadata):
        kinds = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.float64): "F64"}
        specs = {name: (kinds[array.dtype], array.shape) for name, array in arrays.items()}
        told = {"format": "penjing-adapter", "version": "1", "parent": ""} | metadata
        with SafetensorsWriter(path, {name: TensorSpec(*spec) for name, spec in specs.items()}, told) as writer:
            for name, array in arrays.items():
                writer.write(name, array)
            writer.finish()
        return path

    def pair(name="layers.0.q", a=(2, cols), b=(rows, 2), dtype=np.float32, b_dtype=None):
        return {f"{name}.lora_a": np.ones(a, dtype), f"{name}.lora_b": np.ones(b, b_dtype or dtype)}

    assert len(read_adapter(write(pair()), BASE).additions) == 1  # what is spoiled below is fine
    refused(write(pair(), version="2"), "not an adapter of this version")
    refused(write(pair(), format="penjing"), "not an adapter of this version")
    refused(write({}), "empty")
    refused(write({"layers.0.q.lora_a": np.ones((2, cols), np.float32)}), "lora_b is missing")
    refused(write(pair() | {"layers.0.q.bias": np.ones(2, np.float32)}), "missing or too many")
    for name in ("layers.2.q", "layers.0.attn_norm", "embed", "layers.-1.q", "layers.00.q", "layers.0.q.lora_a"):
        refused(write(pair(name)), "no such matrix|missing or too many")
    refused(write(pair(a=(2, cols + 1))), "do not fit")
    refused(write(pair(b=(rows - 1, 2))), "do not fit")
    refused(write(pair(a=(3, cols))), "do not fit")
    refused(write(pair(a=(2 * cols,))), "do not fit")
    refused(write(pair(a=(0, cols), b=(rows, 0))), "rank 0")
    refused(write(pair(a=(257, cols), b=(rows, 257))), "rank 257")
    refused(write(pair(dtype=np.float64)), "F64")
    refused(write(pair(b_dtype=np.float16)), "float16")
    for value in (np.nan, np.inf):
        arrays = pair()
        arrays["layers.0.q.lora_b"][1, 1] = value
        refused(write(arrays), "NaN or infinite")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("adapter") / "a"
    write_adapter(path, Adapter({"layers.0.q": Addition(np.ones((2, 24), np.float32), np.ones((32, 2), np.float32))}))
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    spoiled = bytearray(good)
    spoiled[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(spoiled[: data.draw(st.sampled_from([len(good), at]))])
    try:
        adapter = read_adapter(path, BASE)
    except PenjingError:
        return
    assert all(np.isfinite(x.a).all() and np.isfinite(x.b).all() for x in adapter.additions.values())


CASES = {
    "plain": {},
    "rank stabilized": {"use_rslora": True},
    "an alpha of its own": {"alpha_pattern": {"v_proj": 3}, "rank_pattern": {"k_proj": 2}},
    "fused": {},
}


@pytest.mark.parametrize("case", CASES)
def test_a_peft_folder_gives_what_peft_computes(case, tmp_path, tiny_model):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from penjing.checkpoint import open_checkpoint
    from penjing.runtime.reference import Decoder

    made = tiny_model("phi3" if case == "fused" else "llama")
    base = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | CASES[case]
    model = peft.get_peft_model(base, peft.LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(made.path)
    adapter = read_adapter(tmp_path, checkpoint.architecture)
    weights = {part.name: checkpoint.read_part(part) for part in checkpoint.parts()}
    tokens = np.arange(3, 20)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens[None])).logits[0].double().numpy()
    pairs = {name: (x.a, x.b) for name, x in adapter.additions.items()}
    got = Decoder(checkpoint.architecture, weights, adapter=pairs).forward(tokens)
    plain = Decoder(checkpoint.architecture, weights).forward(tokens)
    assert np.abs(expected - plain).max() > 0.1
    # float32 against float64 through three layers: a thousand roundings at most, each of what is largest
    np.testing.assert_allclose(got, expected, atol=1000 * np.finfo(np.float32).eps * np.abs(expected).max())


@pytest.fixture
def folder(tmp_path):
    """A folder as peft writes it, for BASE's shapes under Llama's names."""
    config = {"peft_type": "LORA", "lora_alpha": 4, "r": 2, "bias": "none"}
    start = "base_model.model.model.layers.0.self_attn.q_proj"
    arrays = {f"{start}.lora_A.weight": np.ones((2, 24)), f"{start}.lora_B.weight": np.ones((32, 2))}

    def write(*, without=(), more=None, **changes):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        kept = {name: a.astype(np.float32) for name, a in (arrays | (more or {})).items() if not name.endswith(without)}
        specs = {name: TensorSpec("F32", array.shape) for name, array in kept.items()}
        with SafetensorsWriter(tmp_path / "adapter_model.safetensors", specs, {}) as writer:
            for name, array in kept.items():
                writer.write(name, array)
            writer.finish()
        return tmp_path

    return write


def test_what_peft_can_and_penjing_cannot_is_refused_by_name(folder):
    import dataclasses

    arch = dataclasses.replace(BASE, model_type="llama")

    def told(message, **changes):
        with pytest.raises(PenjingError, match=message):
            read_adapter(folder(**changes), arch)

    read = read_adapter(folder(without=("nothing",)), arch)
    np.testing.assert_array_equal(read.additions["layers.0.q"].b, 2 * np.ones((32, 2)))  # alpha / r
    without = ("nothing",)
    told("use_dora", use_dora=True, without=without)
    told("modules_to_save", modules_to_save=["lm_head"], without=without)
    told("bias", bias="all", without=without)
    told("IA3", peft_type="IA3", without=without)
    told("init_lora_weights", init_lora_weights="pissa_niter_4", without=without)
    told("is not a name", alpha_pattern={"(a+)+$": 3}, without=without)
    told("no scale", lora_alpha="much", without=without)
    told("scale", lora_alpha=1e400, without=without)
    told("half an addition", without=("lora_B.weight",))
    told("no part of a plain LoRA", more={"base_model.model.lm_head.weight": np.ones((3, 3))}, without=without)
    strange = "base_model.model.model.layers.7.self_attn.q_proj"
    more = {f"{strange}.lora_A.weight": np.ones((2, 24)), f"{strange}.lora_B.weight": np.ones((32, 2))}
    told("no such matrix", more=more, without=without)


def test_a_folder_without_an_adapter_says_so(tmp_path):
    refused(tmp_path, "no adapter_config.json")
    (tmp_path / "adapter_config.json").write_text("[]")
    refused(tmp_path, "not a JSON object")
