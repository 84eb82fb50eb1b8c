"""The stage: a child beside an untouched parent, the same after a kill, refused where nothing was trained."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'penjing[fit]'")
peft = pytest.importorskip("peft", reason="pip install 'penjing[fit]'")

from penjing import evidence  # noqa: E402
from penjing.checkpoint import open_checkpoint  # noqa: E402
from penjing.errors import PenjingError  # noqa: E402
from penjing.measure.torch_model import load  # noqa: E402
from penjing.stages.adapt import Examples, Training, adapt  # noqa: E402
from penjing.stages.pack import pack  # noqa: E402
from penjing.stages.quantize import quantize  # noqa: E402
from penjing.train.batch import document  # noqa: E402

TRAINING = Training(steps=6, rows=2, length=24, evaluations=2, rate=1e-2, precision="f32")


def _examples(tasks=("data",)):
    rng = np.random.default_rng(0)
    made = {task: [document(rng.integers(3, 101, rng.integers(4, 12))) for _ in range(30)] for task in tasks}
    return Examples(documents=made, held_out=[document(rng.integers(3, 101, 9)) for _ in range(5)])


@pytest.fixture
def parent(tiny_model):
    return open_checkpoint(tiny_model("llama").path)


def _bytes(folder: Path, *names: str) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix == ".safetensors"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_an_adapter_with_evidence_beside_an_untouched_parent(parent, tmp_path):
    before = _bytes(parent.path)
    found = adapt(parent, tmp_path / "a", _examples(), method="lora", spec={"rank": 3}, training=TRAINING)
    assert _bytes(parent.path) == before
    assert not (tmp_path / "a.run").exists()
    (record,) = evidence.read(tmp_path / "a" / "evidence.jsonl")
    assert record["after"]["trained_parameters"] == found.after["trained_parameters"] > 0
    assert len(record["after"]["training"]["curve"]) == 6
    assert record["before"]["loss"] != record["after"]["loss"] > 0
    model = peft.PeftModel.from_pretrained(load(parent), tmp_path / "a")
    assert sum(float(p.abs().sum()) for name, p in model.named_parameters() if "lora_B" in name) > 0


def test_a_child_with_biases_is_quantized_packed_and_opened_by_transformers(parent, tmp_path):
    adapt(parent, tmp_path / "b", _examples(), method="bitfit", training=TRAINING)
    child = open_checkpoint(tmp_path / "b")
    biases = [part for part in child.parts() if part.name.endswith(".bias")]
    assert len(biases) == 3 * 7
    assert all(np.abs(child.read_part(part)).max() > 0 for part in biases)
    for name in parent.tensors:
        np.testing.assert_array_equal(child.read(name), parent.read(name))
    assert load(child).model.layers[0].mlp.up_proj.bias is not None
    quantize(child, tmp_path / "q", spec={"bits": 8, "group_size": 4})
    pack(open_checkpoint(tmp_path / "q"), tmp_path / "q.penjing")
    packed = open_checkpoint(tmp_path / "q.penjing")
    np.testing.assert_array_equal(packed.read("layers.1.down.bias"), child.read("model.layers.1.mlp.down_proj.bias"))


def test_biases_are_trained_over_matrices_in_bfloat16(parent, tmp_path):
    adapt(parent, tmp_path / "b", _examples(), method="bitfit", training=replace(TRAINING, precision="bf16"))
    child = open_checkpoint(tmp_path / "b")
    assert all(np.abs(child.read_part(part)).max() > 0 for part in child.parts() if part.name.endswith(".bias"))


def test_only_what_a_method_trains_is_changed(parent, tmp_path):
    adapt(parent, tmp_path / "c", _examples(), method="layers", spec={"chosen": "1"}, training=TRAINING)
    child = open_checkpoint(tmp_path / "c")
    changed = {name for name in parent.tensors if not np.array_equal(child.read(name), parent.read(name))}
    assert changed == {name for name in parent.tensors if name.startswith("model.layers.1.")}


def test_tasks(parent, tmp_path):
    adapt(parent, tmp_path / "m", _examples(("mail", "notes")), method="multitask", training=TRAINING)
    peft.PeftModel.from_pretrained(load(parent), tmp_path / "m" / "notes_whole")


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_killed_and_run_again_it_ends_with_the_same_bytes(parent, tmp_path, method):
    training = {"steps": 60, "rows": 2, "length": 24, "evaluations": 3, "precision": "f32", "rate": 1e-2}
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch; torch.set_num_threads(1)
import test_adapt as t
import penjing.stages.adapt as stage
settings = stage._settings
stage._settings = lambda *a: __import__("dataclasses").replace(settings(*a), save_every_s=0.0)
t.adapt(t.open_checkpoint({str(parent.path)!r}), t.Path(sys.argv[1]), t._examples(), method={method!r},
        training=t.Training(**{training!r}))
"""
    run = [sys.executable, "-W", "ignore", "-c", script]
    subprocess.run([*run, str(tmp_path / "whole")], check=True, capture_output=True)
    killed = subprocess.Popen([*run, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = tmp_path / "killed.run" / "state.safetensors"
    while not state.exists() and killed.poll() is None:
        time.sleep(0.002)
    time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it was over before it could be killed"
    assert not (tmp_path / "killed").exists()
    subprocess.run([*run, str(tmp_path / "killed")], check=True, capture_output=True)
    assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "whole") != {}


def test_a_run_that_trains_nothing_is_an_error(parent, tmp_path):
    settings = Training(steps=2, rows=2, length=24, rate=1e-30, precision="f32")
    with pytest.raises(PenjingError, match="changed nothing"):
        adapt(parent, tmp_path / "n", _examples(), method="norms", training=settings)
    assert not (tmp_path / "n").exists()


def test_what_is_there_is_not_overwritten(parent, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "diary.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(PenjingError):
            adapt(parent, tmp_path / "o", _examples(), training=TRAINING, force=force)
    adapt(parent, tmp_path / "p", _examples(), spec={"rank": 2}, training=TRAINING)
    with pytest.raises(PenjingError, match="already there"):
        adapt(parent, tmp_path / "p", _examples(), spec={"rank": 2}, training=TRAINING)
    adapt(parent, tmp_path / "p", _examples(), spec={"rank": 3}, training=TRAINING, force=True)
    assert json.loads((tmp_path / "p" / "adapter_config.json").read_text())["r"] == 3
