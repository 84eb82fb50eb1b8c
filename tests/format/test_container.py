"""The `.penjing` file: what goes in comes out, every byte is accounted for, and nothing unsound is opened."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from penjing.errors import PenjingError
from penjing.format.architecture import Architecture, Rope
from penjing.format.container import (
    TOKENIZER,
    bias_sizes,
    open_container,
    replace_evidence,
    with_short_merges,
    write_container,
)
from penjing.format.pack import Layout, dequantize
from penjing.format.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec

ROOT = Path(__file__).resolve().parents[2]


def rewrite(path: Path, *, metadata=None, drop=(), change=None) -> Path:
    """The same file, sound as safetensors, with other metadata or tensors."""
    file = SafetensorsFile(path)
    arrays = {name: (spec, file.raw(name)) for name, spec in file.tensors.items() if name not in drop}
    for name, (dtype, array) in (change or {}).items():
        arrays[name] = (TensorSpec(dtype, array.shape), array)
    out = path.with_name("rewritten.penjing")
    with SafetensorsWriter(
        out, {n: spec for n, (spec, _) in arrays.items()}, file.metadata | (metadata or {})
    ) as writer:
        for name, (_, array) in arrays.items():
            writer.write(name, array)
        writer.finish()
    return out


def test_what_goes_in_comes_out(make_container):
    path = make_container()
    torch = pytest.importorskip("torch")
    stored = pytest.importorskip("safetensors.torch").load_file(path)  # any reader opens it
    with open_container(path) as container:
        assert stored.keys() == container.tensors.keys()
        for name, array in stored.items():
            assert container.tensor(name).tobytes() == array.flatten().view(torch.uint8).numpy().tobytes()
            assert not container.tensor(name).flags.writeable
        assert container.tokenizer_json() == '{"version": "1.0", "text": "盆景"}'
        assert container.generation == {"temperature": 0.5}
        assert container.provenance == {"name": "tiny"}
        assert container.evidence == [{"stage": "pack"}]
        assert "layers.0.q.bias" in container.tensors
        assert container.architecture.num_layers == 2
        for name, layout in container.layouts.items():
            assert dequantize(layout, container.matrix(name)).shape == container.architecture.matrix_shapes()[name]


def test_same_input_same_bytes(make_container):
    assert make_container("a.penjing").read_bytes() == make_container("b.penjing").read_bytes()


def test_every_byte_is_accounted_for(make_container):
    path = make_container()
    with open_container(path) as container:
        parts = container.bytes_by_part()
        assert sum(parts.values()) == path.stat().st_size == container.file_bytes
        assert parts["tokenizer"] == len(zlib.compress(container.tokenizer_json().encode(), 9))
        header = path.read_bytes()[: 8 + int.from_bytes(path.read_bytes()[:8], "little")]
        assert parts["header"] == len(header.rstrip(b" "))
        arch = container.architecture
        norms = sum(arch.norm_sizes().values())
        assert parts["norms"] == 4 * norms
        weights = sum(rows * cols for rows, cols in arch.matrix_shapes().values())
        biases = sum(bias_sizes(arch)[name] for name in container.tensors if name.endswith(".bias"))
        assert container.num_weights == weights + norms + biases
        assert container.bits_per_weight == pytest.approx(8 * path.stat().st_size / container.num_weights)
        # embed: 40 x 24, 4 bits, 2 groups of float16 scales a row
        assert parts["embed"] == 40 * 24 * 4 // 8 + 40 * 2 * 2


def test_tensors_are_aligned(make_container):
    file = SafetensorsFile(make_container())
    assert file.data_start % 64 == 0
    for name, spec in file.tensors.items():
        assert file.offsets[name] % min(64, spec.nbytes & -spec.nbytes) == 0


def test_a_tied_model_has_no_head(make_container, tmp_path):
    path = make_container()
    with open_container(path) as container:
        arch = dataclasses.replace(container.architecture, tied=True)
    with pytest.raises(PenjingError, match="head"):
        open_container(rewrite(path, metadata={"architecture": arch.to_json()}))


def test_a_tensor_may_come_in_chunks_of_panels(tmp_path):
    arch, layouts, arrays = plain()

    def chunks():
        for name, array in arrays.items():
            for row in range(len(array)):
                yield name, array[row : row + 1]

    write_container(tmp_path / "a.penjing", architecture=arch, layouts=layouts, tensors=arrays.items())
    write_container(tmp_path / "b.penjing", architecture=arch, layouts=layouts, tensors=chunks())
    assert (tmp_path / "a.penjing").read_bytes() == (tmp_path / "b.penjing").read_bytes()
    with open_container(tmp_path / "a.penjing") as container, pytest.raises(PenjingError, match="no tokenizer"):
        container.tokenizer_json()


def plain(**changes):
    """A one-layer model in float: architecture, layouts, arrays."""
    fields = {
        "model_type": "llama",
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 32,
        "tied": True,
        "attention_scale": 0.5,
        "ropes": (Rope(inv_freq=(1.0, 0.1)),),
        "layer_rope": (0,),
        "layer_window": (0,),
    }
    arch = Architecture(**(fields | changes))
    layouts = {name: Layout(kind="f32", rows=r, cols=c) for name, (r, c) in arch.matrix_shapes().items()}
    arrays = {
        f"{name}.weight": np.ones(layout.tensor_specs()["weight"].shape, "f4") for name, layout in layouts.items()
    }
    arrays |= {name: np.ones(size, np.float32) for name, size in arch.norm_sizes().items()}
    return arch, layouts, arrays


@pytest.mark.parametrize(
    "fields", [{"norm": "layer", "gated": False, "parallel": True}, {"qk_norm": "full", "post_norm": True}]
)
def test_other_architectures(tmp_path, fields):
    arch, layouts, arrays = plain(**fields)
    biases = {name: np.zeros(size, np.float32) for name, size in bias_sizes(arch).items()}
    arguments = {"architecture": arch, "layouts": layouts, "tensors": (arrays | biases).items()}
    write_container(tmp_path / "x.penjing", biases=list(biases), **arguments)
    with open_container(tmp_path / "x.penjing") as container:
        assert biases.keys() <= container.tensors.keys()
        parts = container.bytes_by_part()
        assert sum(parts.values()) == container.file_bytes
        assert ("final_norm.bias" in biases) == (arch.norm == "layer")


def test_tensors_that_are_missing_leave_no_file(tmp_path):
    arch, layouts, arrays = plain()
    tensors = list(arrays.items())[:-1]
    with pytest.raises(ValueError, match="never written"):
        write_container(tmp_path / "x.penjing", architecture=arch, layouts=layouts, tensors=tensors)
    assert not list(tmp_path.iterdir())


def nan_like(container, name):
    array = container.tensor(name).copy()
    array.flat[array.size // 2] = np.nan
    return {"F16": ("F16", array), "F32": ("F32", array)}[container.tensors[name].dtype]


def unsound(path: Path) -> dict[str, dict[str, object]]:
    """Files that any safetensors reader opens, and that are no model."""
    with open_container(path) as container:
        metadata = container._file.metadata
        arch = json.loads(metadata["architecture"])
        layouts = json.loads(metadata["layouts"])
        scales, norm = nan_like(container, "embed.scales"), nan_like(container, "layers.1.mlp_norm")
        codes = container.tensor("embed.codes")
    more_layers = arch | {"num_layers": 3, "layer_rope": [0, 0, 0], "layer_window": [0, 0, 0]}
    return {
        "a NaN scale": {"change": {"embed.scales": scales}},
        "a NaN norm": {"change": {"layers.1.mlp_norm": norm}},
        "an unknown layout": {
            "metadata": {"layouts": json.dumps(layouts | {"embed": layouts["embed"] | {"kind": "q4_k"}})}
        },
        "a layout of other bits": {
            "metadata": {"layouts": json.dumps(layouts | {"embed": layouts["embed"] | {"bits": 5}})}
        },
        "no layout": {"metadata": {"layouts": json.dumps({n: value for n, value in layouts.items() if n != "head"})}},
        "a layout too many": {"metadata": {"layouts": json.dumps(layouts | {"layers.9.q": layouts["embed"]})}},
        "another hidden size": {"metadata": {"architecture": json.dumps(arch | {"hidden_size": 36})}},
        "more layers": {"metadata": {"architecture": json.dumps(more_layers)}},
        "a million layers": {"metadata": {"architecture": json.dumps(many_layers(arch))}},
        "no bias where one is named": {"change": {"layers.0.q.bias": ("F32", np.zeros(23, np.float32))}},
        "a missing tensor": {"drop": ["layers.0.attn_norm"]},
        "missing scales": {"drop": ["embed.scales"]},
        "a tensor too many": {"change": {"surprise": ("F32", np.zeros(3, np.float32))}},
        "zeros that are too many": {"change": {"embed.zeros": ("U8", np.zeros((3, 2, 16), np.uint8))}},
        "a bias that has no place": {"change": {"embed.bias": ("F32", np.zeros(40, np.float32))}},
        "another dtype": {"change": {"embed.codes": ("I8", codes.view(np.int8))}},
        "a tokenizer of floats": {"change": {TOKENIZER: ("F32", np.zeros(3, np.float32))}},
        "another format": {"metadata": {"format": "pt"}},
        "a newer version": {"metadata": {"version": "2"}},
        "no evidence list": {"metadata": {"evidence": "{}"}},
        "evidence of numbers": {"metadata": {"evidence": "[1]"}},
        "a template that is a list": {"metadata": {"chat_template": "[]"}},
        "provenance cut off": {"metadata": {"provenance": '{"name": '}},
        "provenance too deep": {"metadata": {"provenance": "[" * 100_000}},
        "a rope at infinity": {"metadata": {"architecture": json.dumps(arch | {"layer_rope": [float("inf"), 0]})}},
        "a flag that is a word": {"metadata": {"architecture": json.dumps(arch | {"gated": "yes"})}},
    }


def many_layers(arch):
    return arch | {"num_layers": 1_000_000, "layer_rope": [0] * 1_000_000, "layer_window": [0] * 1_000_000}


def test_unsound_models_are_told(make_container):
    path = make_container()
    for name, change in unsound(path).items():
        other = rewrite(path, **change)
        SafetensorsFile(other)
        with pytest.raises(PenjingError) as caught:
            open_container(other)
        assert str(other) in caught.value.where, name
        assert caught.value.attempt, name


def bpe(merges: list[object]) -> str:
    vocab = {token: i for i, token in enumerate(["a", "b", " ", "ab", "a ", "aba ", "#version", "#versiona"])}
    return json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": merges}})


def test_merges_are_kept_short_and_mean_the_same():
    long = bpe([["a", "b"]])
    short = with_short_merges(long)
    assert json.loads(short)["model"]["merges"] == ["a b"]
    for text in ("ab", "abab", "ba a"):
        assert Tokenizer.from_str(short).encode(text).ids == Tokenizer.from_str(long).encode(text).ids


@pytest.mark.parametrize(
    "text",
    [
        bpe([["a", "b"], ["a", " "]]),
        bpe([["a", "b"], ["#version", "a"]]),
        bpe([["a", "b"], "ab a"]),
        bpe([["a", "b", "a"]]),
        bpe([["a", 1]]),
        bpe([["\ud800", "a"]]),
        bpe(["ab"]),
        '{"model": {"type": "Unigram"}}',
        '{"model": []}',
        "[]",
        "not JSON",
    ],
)
def test_merges_that_could_be_taken_otherwise_are_left_alone(text):
    assert with_short_merges(text) == text


@pytest.mark.parametrize("damage", ["bomb", "cut", "noise", "latin"])
def test_a_bad_tokenizer_is_told(make_container, damage, monkeypatch):
    monkeypatch.setattr("penjing.format.container._MAX_TOKENIZER_BYTES", 1000)
    sound = zlib.compress(b"{}")
    bad = {"bomb": zlib.compress(bytes(2000)), "cut": sound[:-3], "noise": b"noise", "latin": zlib.compress(b"\xff")}
    change = {TOKENIZER: ("U8", np.frombuffer(bad[damage], np.uint8))}
    container = open_container(rewrite(make_container(), change=change))
    with pytest.raises(PenjingError, match="tokenizer"):
        container.tokenizer_json()


def all_bytes(path):
    file = SafetensorsFile(path)
    return {name: file.raw(name).tobytes() for name in file.tensors}


@pytest.mark.parametrize("size", [1, 10, 5000])
def test_evidence_is_replaced_and_nothing_else(make_container, size):
    path = make_container()
    evidence = [{"stage": "measure", "text": "é" * size}]
    before = all_bytes(path)
    file_bytes = path.stat().st_size
    replace_evidence(path, evidence)
    assert all_bytes(path) == before
    with open_container(path) as container:
        assert container.evidence == evidence
        assert container.provenance == {"name": "tiny"}
    assert (path.stat().st_size == file_bytes) == (size < 100)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_evidence_of_a_file_that_is_open_elsewhere(make_container):
    path = make_container()
    with open_container(path) as container:
        view = container.tensor("embed.codes")
        before = view.copy()
        replace_evidence(path, [])
        np.testing.assert_array_equal(view, before)
        container.check_unchanged()


def test_a_killed_writer_leaves_no_file_that_looks_finished(tmp_path):
    """Really killed, at any moment of the writing."""
    code = """
import sys, time
import numpy as np
from penjing.format.architecture import Architecture, Rope
from penjing.format.container import write_container
from penjing.format.pack import Layout
arch = Architecture(model_type="llama", vocab_size=4096, hidden_size=256, intermediate_size=512, num_layers=4,
    num_heads=4, num_kv_heads=4, head_dim=64, max_position_embeddings=64, tied=True, attention_scale=0.1,
    ropes=(Rope(inv_freq=(1.0,)),), layer_rope=(0,) * 4, layer_window=(0,) * 4)
layouts = {name: Layout(kind="f16", rows=r, cols=c) for name, (r, c) in arch.matrix_shapes().items()}
def tensors():
    print("begun", flush=True)
    for name, layout in layouts.items():
        time.sleep(0.01)
        yield f"{name}.weight", np.ones(layout.tensor_specs()["weight"].shape, np.float16)
    for name, size in arch.norm_sizes().items():
        yield name, np.ones(size, np.float32)
while True:
    write_container(sys.argv[1], architecture=arch, layouts=layouts, tensors=tensors())
"""
    path = tmp_path / "x.penjing"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for delay in (0.0, 0.05, 0.2, 0.35, 0.5):
        with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        if path.exists():  # a whole one, of a turn that was over
            open_container(path).close()


def test_opening_a_deep_model_is_fast(tmp_path):
    """The budget for SmolLM2-135M, whose depth this has, with a margin of ten: it takes about 6 ms."""
    arch, _, _ = plain(num_layers=30, layer_rope=(0,) * 30, layer_window=(0,) * 30, hidden_size=512, num_heads=128)
    layouts = {
        name: Layout(kind="codes", rows=r, cols=c, bits=4, group_size=c)
        for name, (r, c) in arch.matrix_shapes().items()
    }

    def tensors():
        for name, layout in layouts.items():
            for suffix, spec in layout.tensor_specs().items():
                yield f"{name}.{suffix}", np.ones(spec.shape, "f2" if spec.dtype == "F16" else "u1")
        for name, size in arch.norm_sizes().items():
            yield name, np.ones(size, np.float32)

    path = tmp_path / "x.penjing"
    write_container(path, architecture=arch, layouts=layouts, tensors=tensors())
    open_container(path).close()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        open_container(path).close()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15, times
