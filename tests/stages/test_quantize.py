"""The quantize stage: what is stored, what is simulated, memory, resumption, and errors with remedies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.evidence import read
from penjing.format.pack import dequantize
from penjing.format.source import row_indices
from penjing.quant import rtn
from penjing.stages.quantize import quantize

ROOT = Path(__file__).resolve().parents[2]
#: families that fuse tensors by slices and by interleaved rows, add to norms, have biases, tie the head
FAMILIES = ["llama", "llama-tied-biased", "phi3", "gpt_neox", "gemma3_text"]


def same_files(first: Path, second: Path) -> None:
    """All but evidence, which tells times."""
    for folder in (first, second):
        assert (folder / "evidence.jsonl").exists()
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    for name in names - {"evidence.jsonl"}:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_floats_and_codes_are_the_same_weights(tiny_model, tmp_path, family, monkeypatch):
    monkeypatch.setattr("penjing.stages.codes._CHUNK", 16 * 36)  # many chunks
    tiny = tiny_model(family)
    parent = open_checkpoint(tiny.path)
    before = {path.name: path.read_bytes() for path in tiny.path.iterdir()}
    spec = {"bits": 4, "group_size": 4, "symmetric": False}
    quantize(parent, tmp_path / "child", spec=spec, overrides=[("embed", {"bits": 8}), ("*.o", {"bits": 16})])
    assert {path.name: path.read_bytes() for path in tiny.path.iterdir()} == before
    child = open_checkpoint(tmp_path / "child")
    wanted = {name for name in parent.architecture.matrix_shapes() if not name.endswith(".o")}
    assert set(child.quantized) == wanted
    assert child.quantized["embed"].bits == 8
    for part in child.parts():
        weight_OI = child.read_part(part)
        if part.name in wanted:
            np.testing.assert_array_equal(weight_OI, dequantize(child.quantized[part.name], child.packed(part.name)))
            bits = child.quantized[part.name].bits
            method = rtn.Spec(bits=bits, group_size=4, symmetric=False)
            source = torch.from_numpy(parent.read_part(part))
            np.testing.assert_array_equal(weight_OI, rtn.quantize(method, source).dequantize().numpy())
        else:
            np.testing.assert_array_equal(weight_OI, parent.read_part(part))


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_transformers_opens_the_child(tiny_model, tmp_path, family):
    from transformers import AutoModelForCausalLM

    tiny = tiny_model(family)
    quantize(open_checkpoint(tiny.path), tmp_path / "child", spec={"bits": 8, "group_size": 4})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "child").eval()
    with torch.no_grad():
        logit_TV = model(torch.from_numpy(tiny.token_T)[None]).logits[0].numpy()
    difference = np.abs(logit_TV - tiny.logit_TV).max()
    # half a step of 8 bits is 0.4% of a group's largest weight; it must be neither nothing nor much
    assert 0 < difference < 0.1 * np.abs(tiny.logit_TV).max()


def test_same_seed_same_bytes(tiny_model, tmp_path):
    parent = open_checkpoint(tiny_model("llama").path)
    for name in ("a", "b"):
        quantize(parent, tmp_path / name, spec={"group_size": 4})
    same_files(tmp_path / "a", tmp_path / "b")


def test_evidence_is_kept_from_parent_to_child(tiny_model, tmp_path):
    parent = open_checkpoint(tiny_model("llama").path)
    seen = []
    first = quantize(
        parent, tmp_path / "a", spec={"bits": "8", "group_size": "4"}, progress=lambda *step: seen.append(step)
    )
    child = open_checkpoint(tmp_path / "a")
    assert first.parent == parent.digest
    assert first.child == child.digest
    second = quantize(child, tmp_path / "b", spec={"bits": 4, "group_size": 4})
    records = read(tmp_path / "b" / "evidence.jsonl")
    assert [record["child"] for record in records] == [first.child, second.child]
    assert second.after["bits_per_weight"] < first.after["bits_per_weight"]
    assert json.loads((tmp_path / "b" / "penjing.json").read_text())["base"]["digest"] == parent.digest
    assert [done for _, done, _ in seen] == list(range(len(seen)))
    assert {total for _, _, total in seen} == {len(parent.tensors)}


@contextmanager
def interrupted(monkeypatch, at):
    """Ctrl-C comes at that call of rtn, and has to get through."""
    real, calls = rtn.quantize, []

    def stops(spec, weight_OI):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(spec, weight_OI)

    with monkeypatch.context() as patched:
        patched.setattr(rtn, "quantize", stops)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_failure_is_kept_and_resumed(tiny_model, tmp_path, monkeypatch):
    parent = open_checkpoint(tiny_model("llama").path)
    with interrupted(monkeypatch, 20):
        quantize(parent, tmp_path / "a", spec={"group_size": 4})
    assert not (tmp_path / "a").exists()
    quantize(parent, tmp_path / "a", spec={"group_size": 4})
    assert [record["failed"] for record in read(tmp_path / "a" / "evidence.jsonl")] == ["KeyboardInterrupt", None]
    quantize(parent, tmp_path / "b", spec={"group_size": 4})
    same_files(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "fact", "remedy"),
    [
        ({"spec": {"bites": 4}}, "no setting 'bites'", "bits, group_size, symmetric"),
        ({"spec": {"bits": "four"}}, "bits is 'four'", "--set bits=INT"),
        ({"spec": {"bits": 4.5}}, "bits is 4.5", "--set bits=INT"),
        ({"spec": {"bits": 7, "group_size": 4}}, "7 bits are not supported", "2, 3, 4, 5, 6, 8"),
        ({"spec": {"symmetric": "maybe"}}, "symmetric is 'maybe'", "BOOL"),
        ({"spec": {"group_size": 64}}, "group_size 64 does not divide 36 inputs", "--set group_size=36"),
        ({"method": "gptp"}, "no technique 'gptp'", "rtn"),
        ({"overrides": [("layers.*.dwon", {"bits": 8})]}, "no matrix is called 'layers.*.dwon'", "embed"),
    ],
)
def test_settings_that_cannot_be_are_told_before_anything_is_written(tiny_model, tmp_path, arguments, fact, remedy):
    with pytest.raises(PenjingError) as caught:
        quantize(open_checkpoint(tiny_model("llama").path), tmp_path / "child", **arguments)
    assert fact in caught.value.fact
    assert remedy in caught.value.attempt
    assert not list(tmp_path.iterdir())


def test_later_overrides_win(tiny_model, tmp_path):
    parent = open_checkpoint(tiny_model("llama").path)
    overrides = [
        ("layers.*", {"bits": 3, "symmetric": "no"}),
        ("layers.1.*", {"bits": 8}),
        ("*.down", {"method": "none"}),
        ("layers.2.down", {"method": "rtn", "bits": "5"}),
    ]
    quantize(parent, tmp_path / "child", spec={"group_size": 4}, overrides=overrides)
    found = open_checkpoint(tmp_path / "child").quantized
    assert [found[name].bits for name in ("embed", "layers.0.q", "layers.1.q", "layers.2.down")] == [4, 3, 8, 5]
    assert "layers.0.down" not in found
    assert found["embed"].symmetric
    assert not found["layers.1.q"].symmetric


@pytest.mark.parametrize(
    ("value", "fact"), [(float("nan"), "NaN"), (float("inf"), "NaN or infinite"), (1e7, "too large")]
)
def test_weights_that_cannot_be_quantized_are_told_by_name(tiny_model, tmp_path, value, fact, monkeypatch):
    parent = open_checkpoint(tiny_model("llama").path)
    real = parent.read

    def read_damaged(tensor, rows=None):
        weight_OI = real(tensor, rows)
        if tensor == "model.layers.1.mlp.up_proj.weight":
            weight_OI[-1, 3] = value
        return weight_OI

    monkeypatch.setattr(parent, "read", read_damaged)
    with pytest.raises(PenjingError, match=fact) as caught:
        quantize(parent, tmp_path / "child", spec={"group_size": 4})
    assert caught.value.where == "layers.1.up"
    assert not (tmp_path / "child").exists()


def test_rows_are_cut_where_order_breaks():
    from penjing.stages.codes import runs

    index = row_indices(np.array([4, 5, 6, 0, 1, 9, 8]), 10)
    assert list(runs(index)) == [(0, 3), (3, 5), (5, 6), (6, 7)]
    assert list(runs(index[:0])) == []


# One interpreter that imports torch once and forks a child for each run: the child is what gets killed.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy, torch
torch.set_num_threads(1)
from penjing.checkpoint import open_checkpoint
from penjing.data.text import Windows
from penjing.stages.quantize import quantize
import penjing.evidence
parent, out, seed = open_checkpoint(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
parent.digest
penjing.evidence.versions()
settings = {"method": sys.argv[4], "spec": {"group_size": 4}, "overrides": [("embed", {"method": "rtn"})]}
if sys.argv[4] == "gptq":
    tokens_WT = numpy.random.default_rng(0).integers(0, 101, (2, 20), dtype=numpy.int32)
    settings["calibration"] = Windows(tokens_WT, tokens_WT.size)
chance, kills = random.Random(seed), 0
start = time.perf_counter()
quantize(parent, out.with_name("at once"), **settings)
whole_s = time.perf_counter() - start
def shards():
    return len(list(out.parent.glob("*.partial/model-*.safetensors")))
while not out.exists():
    child = os.fork()
    if child == 0:
        quantize(parent, out, **settings)
        os._exit(0)
    if kills < 12:  # after a while or after one more shard, whichever comes first: it never gets through at once
        deadline, known = time.perf_counter() + chance.uniform(0, 0.6) * whole_s, shards()
        while time.perf_counter() < deadline and shards() == known:
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
        kills += 1
    os.waitpid(child, 0)
print(kills)
"""


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_killed_at_any_moment_and_run_again_it_gives_the_same_bytes(tiny_model, tmp_path, method):
    path = tiny_model("llama").path
    command = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "killed"), "0", method]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1
    same_files(tmp_path / "at once", tmp_path / "killed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at once", "killed"]


MEMORY = """
import sys
from pathlib import Path
import torch
from penjing import evidence
from penjing.checkpoint import open_checkpoint
from penjing.stages import codes, quantize
torch.set_num_threads(1)
codes._CHUNK = int(sys.argv[3])
quantize.quantize(open_checkpoint(sys.argv[1]), Path(sys.argv[2]), overrides=[("embed", {"bits": 8})])
print(evidence.peak_rss_bytes())  # not ru_maxrss: a child inherits that from the process that started it
"""


def peak_and_bound(folder: Path, out: Path, chunk: int = 1 << 22) -> tuple[int, int]:
    """Peak resident memory of a fresh process that quantizes, and what it may be: twice the largest tensor + 500 MB."""
    command = [sys.executable, "-c", MEMORY, str(folder), str(out), str(chunk)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tensors = open_checkpoint(folder).tensors.values()
    return int(done.stdout), max(2 * int(np.prod(info.shape)) for info in tensors) * 2 + 500_000_000


def make_big(folder: Path, **sizes: int) -> Path:
    import importlib.util

    found = importlib.util.spec_from_file_location("make_big_checkpoint", ROOT / "scripts" / "make_big_checkpoint.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    module.make(folder, module.config(**sizes))
    return folder


def test_memory_does_not_grow_with_the_model(tmp_path):
    """A model 30 times as large takes hardly more memory than a small one: chunks are what counts."""
    chunk = 1 << 18  # 1 MB of float32
    small = make_big(tmp_path / "small", vocab=512, hidden=256, intermediate=512, layers=2)
    large = make_big(tmp_path / "large", vocab=24576, hidden=512, intermediate=2048, layers=4)
    small_peak, bound = peak_and_bound(small, tmp_path / "small child", chunk)
    large_peak, _ = peak_and_bound(large, tmp_path / "large child", chunk)
    assert small_peak < bound
    # a dozen chunks alive at once in the worst moment, and the allocator's slack; the embedding alone has 50 MB
    assert large_peak - small_peak < 32 << 20


@pytest.mark.skipif(os.environ.get("PENJING_BIG") != "1", reason="writes 7 GB: set PENJING_BIG=1")
def test_three_gigabytes_stay_within_the_bound(tmp_path):
    big = make_big(tmp_path / "big", vocab=128256, hidden=2048, intermediate=8192, layers=21)
    assert (big / "model.safetensors").stat().st_size > 3_000_000_000
    peak, bound = peak_and_bound(big, tmp_path / "child")
    print(f"peak {peak / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB")
    assert peak < bound


@pytest.mark.parametrize("limit", [3_000, 20_000])
def test_a_full_disk_leaves_nothing_that_looks_finished(tiny_model, tmp_path, limit):
    code = """
import resource, signal, sys
from pathlib import Path
from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.stages.quantize import quantize
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    quantize(open_checkpoint(sys.argv[1]), Path(sys.argv[2]), spec={"group_size": 4})
except PenjingError as error:
    print(error)
"""
    out = tmp_path / "child"
    command = [sys.executable, "-c", code, str(tiny_model("llama").path), str(out), str(limit)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "try:" in done.stdout, done.stderr
    assert not out.exists()
    quantize(open_checkpoint(tiny_model("llama").path), out, spec={"group_size": 4})  # with room again
    open_checkpoint(out)
