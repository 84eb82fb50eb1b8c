"""What is said before the work: memory as it will be, time that grows as the work does, and budgets that hold."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from stages.test_quantize import interrupted, make_big, same_files

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Windows
from penjing.errors import PenjingError
from penjing.evidence import read
from penjing.stages import rehearsal
from penjing.stages.codes import plan
from penjing.stages.foresight import UNLIMITED, Budget, remedies
from penjing.stages.quantize import choices, quantize

ROOT = Path(__file__).resolve().parents[2]
SPEC = {"bits": 4, "group_size": 4}
METHODS = ["rtn", "scale_search", "gptq", "autoround", "gsq"]


def text(windows=3, length=20, vocab=101):
    tokens_WT = np.random.default_rng(7).integers(0, vocab, (windows, length), dtype=np.int32)
    return Windows(tokens_WT, tokens_WT.size)


def settings(method, windows=3):
    few = {"steps": 3} if method in ("autoround", "gsq") else {}
    bits = {"bits": 2} if method == "gsq" else {}
    found = {"method": method, "spec": SPEC | few | bits, "overrides": [("embed", {"method": "rtn", "bits": 4})]}
    if method in ("autoround", "gsq"):
        found["overrides"] = [("[eh]*", {"bits": 16})]
    return found if method == "rtn" else found | {"calibration": text(windows)}


@pytest.mark.parametrize("method", METHODS)
def test_it_is_told_and_kept_and_changes_nothing(tiny_model, tmp_path, method):
    parent, said = open_checkpoint(tiny_model("llama").path), []
    quantize(parent, tmp_path / "silent", **settings(method))
    evidence = quantize(parent, tmp_path / "told", **settings(method), tell=said.append)
    same_files(tmp_path / "silent", tmp_path / "told")
    assert len(said) == 1
    assert "MB of memory at most" in said[0]
    kept = read(tmp_path / "told" / "evidence.jsonl")[-1]["predicted"]
    assert kept == evidence.predicted
    assert kept["seconds"] > 0
    assert kept["peak_rss_bytes"] > 50_000_000
    assert read(tmp_path / "silent" / "evidence.jsonl")[-1]["predicted"] == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["silent", "told"]


def one_second_each(monkeypatch):
    """Whatever is timed takes a second, so that what comes out is a count."""

    def timed(work):
        work()
        return 1.0

    monkeypatch.setattr(rehearsal, "timed", timed)
    monkeypatch.setattr(rehearsal, "_PART", 0.0)  # and once is enough


@pytest.mark.parametrize(("answers", "rounds"), [([1.0], 1), ([16.0, 20.0, 18.0, 1e9], 3), ([1e6] * 999, 80)])
def test_long_work_is_rehearsed_longer(tiny_model, tmp_path, monkeypatch, answers, rounds):
    now, left = [0.0], list(answers)

    def once(self):
        now[0] += 0.125  # of predicting: a fiftieth of the work at most, and ten seconds
        return left.pop(0)

    monkeypatch.setattr(rehearsal.Rehearsal, "_once", once)
    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: now[0])
    parent = open_checkpoint(tiny_model("llama").path)
    work = rehearsal.Rehearsal(parent, {}, [], [], {}, None, tmp_path)
    assert work.seconds() == pytest.approx(sum(answers[:rounds]) / rounds)
    assert len(answers) - len(left) == rounds


@pytest.mark.parametrize("method", ["scale_search", "gptq"])
def test_time_grows_with_windows_as_passes_through_layers_do(tiny_model, tmp_path, method, monkeypatch):
    one_second_each(monkeypatch)
    parent = open_checkpoint(tiny_model("llama").path)
    few, more = (
        quantize(parent, tmp_path / str(count), **settings(method, count), tell=str).predicted["seconds"]
        for count in (2, 5)
    )
    layers = parent.architecture.num_layers
    # each layer once for its Hessians and once into the next block, which is a head of its own here
    assert not parent.architecture.tied
    assert more - few == pytest.approx(3 * 2 * layers)


def test_what_was_rehearsed_is_not_held_while_the_work_goes_on(tiny_model, tmp_path):
    parent = open_checkpoint(tiny_model("llama").path)
    chosen = choices(parent, "gptq", SPEC, [("[eh]*", {"bits": 16})])
    shards = plan(parent, {name: choice.layout for name, choice in chosen.items()})
    work = rehearsal.Rehearsal(parent, chosen, shards, range(len(shards)), {}, text(), tmp_path)
    before = set(map(id, alive()))
    assert work.seconds() > 0
    left = [tensor for tensor in alive() if id(tensor) not in before]
    assert sum(tensor.nbytes for tensor in left) < 1000  # a layer alone has 40,000 bytes


def alive():
    gc.collect()
    return [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]


def test_what_is_finished_is_not_counted_again(tiny_model, tmp_path, monkeypatch):
    parent, said = open_checkpoint(tiny_model("llama").path), []
    with interrupted(monkeypatch, 15):
        quantize(parent, tmp_path / "a", spec=SPEC)
    one_second_each(monkeypatch)
    rest = quantize(parent, tmp_path / "a", spec=SPEC, tell=said.append).predicted["seconds"]
    whole = quantize(parent, tmp_path / "b", spec=SPEC, tell=said.append).predicted["seconds"]
    assert 0 < rest < 0.7 * whole


@pytest.mark.parametrize(
    ("budget", "fact", "where"),
    [
        (Budget(max_bytes=10_000_000), "MB of memory, 10 MB are allowed", "held already"),
        (Budget(max_seconds=1e-6), "minutes, 1.7e-08 are allowed", "gptq"),
    ],
)
def test_a_budget_that_cannot_be_met_is_said_at_once(tiny_model, tmp_path, budget, fact, where):
    parent = open_checkpoint(tiny_model("llama").path)
    with pytest.raises(PenjingError) as caught:
        quantize(parent, tmp_path / "child", **settings("gptq", 8), budget=budget)
    assert fact in caught.value.fact
    assert where in caught.value.where
    assert "--windows 4" in caught.value.attempt
    assert len(str(caught.value).splitlines()) == 3
    assert not list(tmp_path.iterdir())


def test_a_budget_that_can_be_met_is_no_matter(tiny_model, tmp_path):
    parent = open_checkpoint(tiny_model("llama").path)
    evidence = quantize(parent, tmp_path / "child", spec=SPEC, budget=Budget(max_bytes=10**12, max_seconds=1e6))
    assert evidence.predicted["seconds"] < 1e6


def test_memory_is_counted_before_any_is_taken(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal.Rehearsal, "seconds", lambda self: pytest.fail("it rehearsed"))
    with pytest.raises(PenjingError, match="MB of memory"):
        quantize(open_checkpoint(tiny_model("llama").path), tmp_path / "a", spec=SPEC, budget=Budget(max_bytes=1))


def test_a_budget_leaves_finished_parts_alone(tiny_model, tmp_path, monkeypatch):
    parent = open_checkpoint(tiny_model("llama").path)
    with interrupted(monkeypatch, 15):
        quantize(parent, tmp_path / "a", spec=SPEC)
    before = sorted((tmp_path / "a.partial").glob("*.safetensors"))
    with pytest.raises(PenjingError):
        quantize(parent, tmp_path / "a", spec=SPEC, budget=Budget(max_bytes=1))
    assert before
    assert sorted((tmp_path / "a.partial").glob("*.safetensors")) == before


FRESH = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from penjing.checkpoint import open_checkpoint
from penjing.data.text import Windows
from penjing.stages.quantize import quantize
torch.set_num_threads(1)
settings = json.loads(sys.argv[3])
shape = settings.pop("windows")
if shape:
    tokens_WT = np.random.default_rng(0).integers(0, 512, shape, dtype=np.int32)
    settings["calibration"] = Windows(tokens_WT, tokens_WT.size)
evidence = quantize(open_checkpoint(sys.argv[1]), Path(sys.argv[2]), **settings, tell=str)
print(json.dumps([evidence.predicted["peak_rss_bytes"], evidence.peak_rss_bytes]))
"""


@pytest.mark.parametrize(
    ("sizes", "how"),
    [
        ({"hidden": 1024, "intermediate": 4096}, {"method": "rtn", "windows": None}),  # chunks of rows
        ({"hidden": 1024, "intermediate": 64}, {"method": "scale_search", "windows": (96, 512)}),  # hidden states
        ({"hidden": 256, "intermediate": 4096}, {"method": "gptq", "windows": (2, 64)}),  # a large Hessian
    ],
)
def test_memory_comes_as_it_was_said(tmp_path, sizes, how):
    folder = make_big(tmp_path / "parent", vocab=512, layers=1, **sizes)
    how["overrides"] = [("embed", {"method": "rtn"})]
    command = [sys.executable, "-c", FRESH, str(folder), str(tmp_path / "child"), json.dumps(how)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    predicted, actual = json.loads(done.stdout)
    assert abs(predicted / actual - 1) <= 0.25, (predicted, actual)


TUNED = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from penjing.checkpoint import open_checkpoint
from penjing.stages import tune as stage
torch.set_num_threads(1)
windows = lambda *given: stage.Windows(np.random.default_rng(0).integers(0, 512, (24, 64), dtype=np.int32), 1)
stage._texts = lambda *given: (windows(), windows())
parent, child = map(open_checkpoint, sys.argv[1:3])
spec = {"steps": 2, "window": 64, "tokens": 1024, "micro_tokens": 1024, "precision": "f32"}
evidence = stage.tune(child, Path(sys.argv[3]), parent=parent, data=stage.Corpus(()), method=sys.argv[4], spec=spec)
print(json.dumps([evidence.predicted["peak_rss_bytes"], evidence.peak_rss_bytes]))
"""


@pytest.mark.parametrize("method", ["qat", "kl_tuning"])
def test_memory_of_tuning_comes_as_it_was_said(tmp_path, method):
    parent = make_big(tmp_path / "parent", vocab=512, layers=2, hidden=768, intermediate=3072)
    quantize(open_checkpoint(parent), tmp_path / "child", spec={"bits": 3, "group_size": 64})
    command = [sys.executable, "-c", TUNED, *map(str, (parent, tmp_path / "child", tmp_path / "tuned", method))]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    predicted, actual = json.loads(done.stdout)
    assert abs(predicted / actual - 1) <= 0.25, (predicted, actual)


def test_time_that_is_gone_is_no_longer_there():
    budget = Budget(max_bytes=7, max_seconds=60.0)
    assert budget.after(20.0) == Budget(max_bytes=7, max_seconds=40.0)
    assert budget.after(90.0) == Budget(max_bytes=7, max_seconds=0.0)
    assert Budget().after(20.0) == UNLIMITED
    assert not UNLIMITED
    assert Budget(max_bytes=0)
    assert Budget(max_seconds=0.0)


@pytest.mark.parametrize(("method", "said"), [("rtn", "a larger budget"), ("hqq", "--method rtn")])
def test_a_remedy_is_another_way(talker, method, said):
    chosen = choices(open_checkpoint(talker), method, {"group_size": 16}, [])
    assert remedies(chosen, None).startswith(said)
