"""Hugging Face folders: shards, templates, and everything that can be missing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from penjing.errors import PenjingError
from penjing.format.hf import HuggingFaceFolder

A = np.arange(12, dtype=np.float32).reshape(4, 3)
B = np.ones((2, 3), np.float16)


def folder(path, *, config=None, shards=None):
    """A folder with tensors a and b: in one file, or in `shards` (file name to tensors)."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} if config is None else config))
    if shards is None:
        save_file({"a": A, "b": B}, path / "model.safetensors")
        return path
    for name, tensors in shards.items():
        save_file(tensors, path / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


SHARDS = {"model-1.safetensors": {"a": A}, "model-2.safetensors": {"b": B}}


@pytest.mark.parametrize("shards", [None, SHARDS], ids=["one file", "shards"])
def test_tensors(tmp_path, shards):
    opened = HuggingFaceFolder(folder(tmp_path, shards=shards))
    assert {name: (info.shape, info.dtype) for name, info in opened.tensors.items()} == {
        "a": ((4, 3), "F32"),
        "b": ((2, 3), "F16"),
    }
    np.testing.assert_array_equal(opened.read("a", slice(1, 3)), A[1:3])
    assert opened.read("b").dtype == np.float32
    assert len(opened.files) == (2 if shards else 1)


def test_integers_are_not_weights(tmp_path):
    folder(tmp_path)
    save_file({"a": A, "mask": np.ones(3, bool), "steps": np.ones(1, np.int64)}, tmp_path / "model.safetensors")
    assert list(HuggingFaceFolder(tmp_path).tensors) == ["a"]


def test_float64_is_read_and_written_smaller(tmp_path):
    folder(tmp_path)
    save_file({"a": A.astype(np.float64)}, tmp_path / "model.safetensors")
    opened = HuggingFaceFolder(tmp_path)
    assert opened.tensors["a"].dtype == "F32"
    np.testing.assert_array_equal(opened.read("a"), A)


def test_float8_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refused(tmp_path, "F8_E4M3 weights are not supported")


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({}, None),
        ({"chat_template.jinja": "J", "tokenizer_config.json": '{"chat_template": "T"}'}, "J"),
        ({"tokenizer_config.json": '{"chat_template": "T"}'}, "T"),
        ({"chat_template.json": '{"chat_template": "P"}'}, "P"),
        ({"tokenizer_config.json": '{"chat_template": [{"name": "x", "template": "X"}]}'}, "X"),
        (
            {
                "tokenizer_config.json": json.dumps(
                    {"chat_template": [{"name": "x", "template": "X"}, {"name": "default", "template": "D"}, 7]}
                )
            },
            "D",
        ),
        ({"tokenizer_config.json": '{"chat_template": []}'}, None),
        ({"tokenizer_config.json": "{}"}, None),
    ],
)
def test_chat_templates(tmp_path, files, template):
    folder(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert HuggingFaceFolder(tmp_path).chat_template == template


def refused(path, problem):
    with pytest.raises(PenjingError) as caught:
        HuggingFaceFolder(path)
    assert problem in str(caught.value)
    assert caught.value.where
    assert caught.value.attempt


def test_missing_files(tmp_path):
    refused(tmp_path, "there is no config.json")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "no model.safetensors")
    (tmp_path / "adapter_model.safetensors").touch()
    refused(tmp_path, "an adapter")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_never_opened(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refused(tmp_path, "nothing is ever unpickled")
    refused(tmp_path, "convert it to safetensors")


def test_missing_shard(tmp_path):
    folder(tmp_path, shards=SHARDS)
    (tmp_path / "model-2.safetensors").unlink()
    refused(tmp_path, "1 of 2 weight files are missing: model-2.safetensors")


def test_tensor_missing_from_its_shard(tmp_path):
    folder(tmp_path, shards=SHARDS)
    save_file({"other": B}, tmp_path / "model-2.safetensors")
    refused(tmp_path, "b is missing")


def test_tensor_in_two_shards(tmp_path):
    folder(tmp_path, shards=SHARDS)
    save_file({"a": A, "b": B}, tmp_path / "model-2.safetensors")
    refused(tmp_path, "a is in two files")


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "x\0.safetensors", "pytorch_model.bin", 5, None]
)
def test_an_index_names_only_files_beside_it(tmp_path, name):
    folder(tmp_path, shards=SHARDS)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    refused(tmp_path, "unreadable weight_map")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '"text"', "\ufeff{}"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_damaged_json(tmp_path, name, text):
    folder(tmp_path)
    (tmp_path / name).write_text(text)
    refused(tmp_path, "JSON")


def test_text_that_is_not_utf8(tmp_path):
    folder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    refused(tmp_path, "not UTF-8")


def test_quantized_by_others(tmp_path):
    refused(folder(tmp_path, config={"quantization_config": {"quant_method": "gptq"}}), "already quantized (gptq)")


def test_codes_beside_the_weights(tmp_path):
    folder(tmp_path)
    codes = {"layers.0.q.codes": np.ones((1, 64), np.uint8), "layers.0.q.scales": np.ones((1, 1, 16), np.float16)}
    save_file(codes, tmp_path / "codes-00001-of-00001.safetensors")
    (tmp_path / "penjing.json").write_text(json.dumps({"layouts": {"layers.0.q": {"kind": "codes"}}}))
    opened = HuggingFaceFolder(tmp_path)
    assert opened.layouts == {"layers.0.q": {"kind": "codes"}}
    assert opened.packed("layers.0.q").keys() == {"codes", "scales"}
    np.testing.assert_array_equal(opened.packed("layers.0.q")["codes"], codes["layers.0.q.codes"])
    assert opened.packed("layers.0.k") == {}
    assert opened.tensors.keys() == {"a", "b"}
    (tmp_path / "penjing.json").write_text(json.dumps({"layouts": {"layers.0.k": {"kind": "codes"}}}))
    refused(tmp_path, "the codes of layers.0.k are missing")
