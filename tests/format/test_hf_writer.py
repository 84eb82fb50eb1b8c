"""Child folders: resumed by the same step, begun anew by another, and only under their name when whole."""

from __future__ import annotations

import json

import numpy as np
import pytest

from penjing.errors import PenjingError
from penjing.format.hf_writer import CheckpointWriter, Shard, tokenizer_config
from penjing.format.pack import Layout, pack_float
from penjing.format.safetensors_file import SafetensorsFile, TensorSpec

LAYOUT = Layout(kind="f32", rows=3, cols=2)
SHARDS = [
    Shard({"a": TensorSpec("BF16", (3, 2))}, {"embed": LAYOUT}),
    Shard({"b": TensorSpec("F32", (4,))}),
    Shard({"c": TensorSpec("F16", ())}),
]
STEP = {"parent": "123", "settings": {"bits": 4}}
TEXTS = {
    "config": {"model_type": "llama"},
    "generation": {"top_k": 5},
    "tokenizer_json": '{"added_tokens": [{"id": 1, "content": "<s>"}]}',
    "chat_template": "{{ messages }}",
    "base": {"name": "x"},
}


def write_shard(writer: CheckpointWriter, index: int, value: float = 1.0) -> None:
    with writer.shard(index) as shard:
        for name, spec in SHARDS[index].tensors.items():
            shard.write(name, np.full(spec.shape, value, np.float32))
        if SHARDS[index].layouts:
            shard.write_codes("embed", pack_float(LAYOUT, np.ones((3, 2), np.float32)))


def write_all(out, *, step=STEP, force=False, value=1.0):
    with CheckpointWriter(out, SHARDS, step=step, force=force) as writer:
        for index in writer.pending():
            write_shard(writer, index, value)
        writer.write_texts(**TEXTS)
        writer.finish()


def content(folder):
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_a_child_is_a_folder_that_transformers_knows(tmp_path):
    out = tmp_path / "child"
    write_all(out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["child"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 12 + 16 + 2
    assert index["weight_map"] == {name: f"model-0000{n}-of-00003.safetensors" for n, name in enumerate("abc", 1)}
    for name, file in index["weight_map"].items():
        assert SafetensorsFile(out / file).metadata == {"format": "pt"}
        assert (SafetensorsFile(out / file).read(name) == 1).all()
    assert sorted(path.name for path in out.glob("codes-*")) == ["codes-00001-of-00003.safetensors"]
    assert json.loads((out / "config.json").read_text()) == {"model_type": "llama", "dtype": "float32"}  # of most bytes
    assert json.loads((out / "generation_config.json").read_text()) == {"top_k": 5}
    own = json.loads((out / "penjing.json").read_text())
    assert own["layouts"] == {
        "embed": {"kind": "f32", "rows": 3, "cols": 2, "bits": 0, "group_size": 0, "symmetric": True}
    }
    assert own["base"] == {"name": "x"}
    assert not (out / "progress.json").exists()


def test_the_same_step_goes_on_where_it_was(tmp_path):
    out = tmp_path / "child"
    with CheckpointWriter(out, SHARDS, step=STEP) as writer:
        assert writer.pending() == [0, 1, 2]
        write_shard(writer, 1)
        with pytest.raises(RuntimeError), writer.shard(0):
            raise RuntimeError("killed here")
    assert not out.exists()
    with CheckpointWriter(out, SHARDS, step=STEP) as writer:
        assert writer.pending() == [0, 2]
        write_shard(writer, 0)
        with pytest.raises(ValueError, match="1 shards were not written"):
            writer.finish()
    write_all(out)
    write_all(tmp_path / "at once")
    assert content(out) == content(tmp_path / "at once")


@pytest.mark.parametrize("change", ["step", "progress", "file", "junk"])
def test_another_step_begins_anew(tmp_path, change):
    out = tmp_path / "child"
    with CheckpointWriter(out, SHARDS, step=STEP) as writer:
        write_shard(writer, 0, 7.0)
    partial = tmp_path / "child.partial"
    if change == "progress":
        (partial / "progress.json").write_text("{")
    if change == "junk":
        (partial / "progress.json").write_text(json.dumps({"step": writer._step, "finished": ["x", 9, None]}))
    if change == "file":
        (partial / "codes-00001-of-00003.safetensors").unlink()
    step = STEP | {"parent": "other"} if change == "step" else STEP
    with CheckpointWriter(out, SHARDS, step=step) as writer:
        assert writer.pending() == [0, 1, 2]
    write_all(out, step=step, value=2.0)
    assert (SafetensorsFile(out / "model-00001-of-00003.safetensors").read("a") == 2).all()


def test_two_at_once_are_refused(tmp_path):
    with CheckpointWriter(tmp_path / "child", SHARDS, step=STEP), pytest.raises(PenjingError, match="another process"):
        CheckpointWriter(tmp_path / "child", SHARDS, step=STEP)
    CheckpointWriter(tmp_path / "child", SHARDS, step=STEP).close()


def test_what_exists_is_replaced_only_by_force(tmp_path):
    out = tmp_path / "child"
    out.mkdir()
    write_all(out)  # an empty folder is as good as none
    with pytest.raises(PenjingError, match="already there") as caught:
        write_all(out)
    assert "--force" in caught.value.attempt
    write_all(out, value=3.0, force=True)
    assert (SafetensorsFile(out / "model-00002-of-00003.safetensors").read("b") == 3).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["child"]


def test_what_is_no_checkpoint_is_never_replaced(tmp_path):
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "one.jpg").write_bytes(b"1")
    file = tmp_path / "file"
    file.write_bytes(b"2")
    partial = tmp_path / "child.partial"
    partial.mkdir()
    (partial / "notes.txt").write_bytes(b"3")
    for out in (precious, file, tmp_path / "child"):
        with pytest.raises(PenjingError, match=r"not a checkpoint|not penjing's"):
            write_all(out, force=True)
    assert (precious / "one.jpg").read_bytes() + file.read_bytes() + (partial / "notes.txt").read_bytes() == b"123"


def test_a_place_that_cannot_be_written_is_told():
    with pytest.raises(PenjingError):
        CheckpointWriter("/proc/child", SHARDS, step=STEP)
    with pytest.raises(PenjingError):
        CheckpointWriter("/nonexistent/child", SHARDS, step=STEP)


def test_values_that_do_not_fit_are_told_by_name(tmp_path):
    with CheckpointWriter(tmp_path / "child", SHARDS, step=STEP) as writer:
        with pytest.raises(PenjingError, match="float16") as caught, writer.shard(2) as shard:
            shard.write("c", np.float32(1e6).reshape(()))
        assert caught.value.where == "c"
        assert writer.pending() == [0, 1, 2]


def test_the_parents_companions_come_along(tmp_path):
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "tokenizer_config.json").write_text('{"theirs": 1}')
    (parent / "LICENSE").write_text("Apache")
    (parent / "pytorch_model.bin").write_text("not this")
    with CheckpointWriter(tmp_path / "child", SHARDS, step=STEP) as writer:
        for index in writer.pending():
            write_shard(writer, index)
        writer.write_texts(**TEXTS, companions=parent)
        writer.finish()
    assert (tmp_path / "child" / "tokenizer_config.json").read_text() == '{"theirs": 1}'
    assert (tmp_path / "child" / "LICENSE").read_text() == "Apache"
    assert not (tmp_path / "child" / "pytorch_model.bin").exists()


def test_a_tokenizer_config_is_made_where_there_is_none():
    config = {"bos_token_id": 1, "eos_token_id": [2, 9], "pad_token_id": None}
    text = json.dumps({"added_tokens": [{"id": 1, "content": "<s>"}, {"id": 2, "content": "</s>"}]})
    made = tokenizer_config(text, config, "{{ x }}")
    assert made["bos_token"] == "<s>"
    assert made["eos_token"] == "</s>"
    assert made["chat_template"] == "{{ x }}"
    assert "pad_token" not in made
