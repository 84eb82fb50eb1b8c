"""The pack stage: what the engine computes from the file is what the checkpoint says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.evidence import read
from penjing.format.container import open_container
from penjing.format.pack import dequantize, round_floats, widen_floats
from penjing.stages.pack import pack
from penjing.stages.quantize import quantize

FAMILIES = ["llama", "llama-tied-biased", "phi3", "gpt_neox", "gemma3_text"]


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_there(tiny_model, tmp_path, family, kind, monkeypatch):
    monkeypatch.setattr("penjing.stages.pack._CHUNK", 16 * 36)  # many chunks
    checkpoint = open_checkpoint(tiny_model(family).path)
    evidence = pack(checkpoint, tmp_path / "x.penjing", float_kind=kind)
    with open_container(tmp_path / "x.penjing") as container:
        assert container.architecture == checkpoint.architecture
        for part in checkpoint.parts():
            weight = checkpoint.read_part(part)
            if part.name in container.layouts:
                packed = dequantize(container.layouts[part.name], container.matrix(part.name))
                np.testing.assert_array_equal(packed, widen_floats(round_floats(weight, kind), kind))
            else:
                np.testing.assert_array_equal(container.tensor(part.name), weight)
        assert container.provenance["parent"] == checkpoint.digest == evidence.parent
        assert evidence.after["bytes"] == container.file_bytes
    assert evidence.child == open_checkpoint(tmp_path / "x.penjing").digest


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_are_copied_as_they_are(tiny_model, tmp_path, family):
    parent = open_checkpoint(tiny_model(family).path)
    quantize(parent, tmp_path / "child", spec={"bits": 5, "group_size": 4}, overrides=[("embed", {"bits": 16})])
    child = open_checkpoint(tmp_path / "child")
    pack(child, tmp_path / "x.penjing")
    with open_container(tmp_path / "x.penjing") as container:
        assert container.layouts["embed"].kind == "f16"
        for name in child.quantized:
            for suffix, array in child.packed(name).items():
                np.testing.assert_array_equal(container.tensor(f"{name}.{suffix}"), array)
        assert container.evidence == read(tmp_path / "child" / "evidence.jsonl")
        assert container.provenance["base"]["digest"] == parent.digest
        assert container.provenance["name"] == "child"


def test_same_checkpoint_same_bytes(tiny_model, tmp_path):
    checkpoint = open_checkpoint(tiny_model("llama").path)
    for name in ("a", "b"):
        pack(checkpoint, tmp_path / f"{name}.penjing")
    assert (tmp_path / "a.penjing").read_bytes() == (tmp_path / "b.penjing").read_bytes()


def test_the_licence_of_the_model_card_comes_along(tiny_model, tmp_path):
    import shutil

    shutil.copytree(tiny_model("llama").path, tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: no\n")
    pack(open_checkpoint(tmp_path / "m"), tmp_path / "x.penjing")
    with open_container(tmp_path / "x.penjing") as container:
        assert container.provenance["base"]["licence"] == "apache-2.0"


def test_what_cannot_be_is_told_and_leaves_nothing(tiny_model, tmp_path):
    checkpoint = open_checkpoint(tiny_model("llama").path)
    (tmp_path / "old.penjing").write_bytes(b"old")
    (tmp_path / "folder.penjing").mkdir()
    for out, arguments in (
        ("x.bin", {}),
        ("old.penjing", {}),
        ("folder.penjing", {"force": True}),
        ("x.penjing", {"float_kind": "q4"}),
        ("missing/x.penjing", {}),
    ):
        with pytest.raises(PenjingError) as caught:
            pack(checkpoint, tmp_path / out, **arguments)
        assert caught.value.attempt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.penjing", "old.penjing"]
    pack(checkpoint, tmp_path / "old.penjing", force=True)
    open_container(tmp_path / "old.penjing").close()


@pytest.mark.parametrize("damage", ["other sizes", "other bits", "a NaN scale", "an unknown kind"])
def test_a_child_that_was_tampered_with_is_told(tiny_model, tmp_path, damage):
    quantize(open_checkpoint(tiny_model("llama").path), tmp_path / "child", spec={"group_size": 4})
    if damage == "a NaN scale":
        poison_scales(tmp_path / "child" / "codes-00001-of-00005.safetensors")
    else:
        path = tmp_path / "child" / "penjing.json"
        changed = {
            "other sizes": ('"rows": 101', '"rows": 102'),
            "other bits": ('"bits": 4', '"bits": 5'),
            "an unknown kind": ('"kind": "codes"', '"kind": "q4_k"'),
        }
        path.write_text(path.read_text().replace(*changed[damage]))
    with pytest.raises(PenjingError):
        pack(open_checkpoint(tmp_path / "child"), tmp_path / "x.penjing")
    assert not (tmp_path / "x.penjing").exists()


def poison_scales(path: Path) -> None:
    import json

    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    begin, _ = json.loads(data[8:start])["embed.scales"]["data_offsets"]
    data[start + begin : start + begin + 2] = b"\x01\x7e"
    path.write_bytes(data)


def test_weights_too_large_for_the_kind_are_told_by_name(tiny_model, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(tiny_model("llama").path)
    real = checkpoint.read

    def read_large(tensor, rows=None):
        weight = real(tensor, rows)
        return weight * np.float32(1e6) if "layers.2.mlp.down" in tensor else weight

    monkeypatch.setattr(checkpoint, "read", read_large)
    with pytest.raises(PenjingError, match="too large for float16") as caught:
        pack(checkpoint, tmp_path / "x.penjing")
    assert caught.value.where == "layers.2.down"
    pack(checkpoint, tmp_path / "x.penjing", float_kind="bf16")
