"""The tune stage: a child comes nearer to its parent, what it stores is what it learnt, a kill changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from penjing.checkpoint import open_checkpoint
from penjing.data.text import Corpus
from penjing.errors import PenjingError
from penjing.evidence import read
from penjing.format.pack import dequantize
from penjing.measure import torch_model
from penjing.quant import qat
from penjing.stages import calibration_text
from penjing.stages.foresight import Budget
from penjing.stages.quantize import quantize
from penjing.stages.student import read_quantized, student, teacher
from penjing.stages.tune import tune
from penjing.train import loop

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"steps": 6, "window": 16, "tokens": 64, "validation": 4, "evaluate_every": 3, "precision": "f32"}


def make_corpus() -> Corpus:
    rng = np.random.default_rng(0)
    return Corpus(tuple("".join(rng.choice(list("abcdef "), 150)) for _ in range(40)))


@pytest.fixture
def parent(talker):
    return open_checkpoint(talker)


@pytest.fixture
def child(parent, tmp_path):
    quantize(parent, tmp_path / "child", spec={"bits": 2, "group_size": 16}, overrides=[("*.o", {"bits": 16})])
    return open_checkpoint(tmp_path / "child")


@pytest.mark.parametrize(("method", "own"), [("qat", {"start": 0.9}), ("kl_tuning", {})])
def test_the_child_comes_nearer_and_stores_what_it_learnt(parent, child, tmp_path, method, own):
    before = {path.name: path.read_bytes() for path in (tmp_path / "child").iterdir()}
    spec = SHORT | {"steps": 30, "learning_rate": 0.03, "evaluate_every": 10} | own
    evidence = tune(child, tmp_path / "tuned", parent=parent, data=make_corpus(), method=method, spec=spec)
    assert {path.name: path.read_bytes() for path in (tmp_path / "child").iterdir()} == before
    assert evidence.after["kl_to_parent"] < 0.8 * evidence.before["kl_to_parent"]
    tuned = open_checkpoint(tmp_path / "tuned")
    assert tuned.quantized == child.quantized
    for part in tuned.parts():
        if part.name in tuned.quantized:
            shipped_OI = dequantize(tuned.quantized[part.name], tuned.packed(part.name))
            np.testing.assert_array_equal(tuned.read_part(part), shipped_OI)
            same = np.array_equal(tuned.packed(part.name)["codes"], child.packed(part.name)["codes"])
            assert same == (method == "kl_tuning"), part.name
        elif part.name.endswith("norm"):
            assert not np.array_equal(tuned.read_part(part), child.read_part(part))
        else:
            np.testing.assert_array_equal(tuned.read_part(part), child.read_part(part))
    assert [record["stage"] for record in read(tmp_path / "tuned" / "evidence.jsonl")] == ["quantize", "tune"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child", "tuned"]


def test_the_best_step_is_that_of_the_smallest_kl_whatever_is_learnt(parent, child, tmp_path):
    data, found = make_corpus(), []
    for hard in (0.0, 1.0):
        out = tmp_path / f"tuned-{hard:g}"
        found.append(tune(child, out, parent=parent, data=data, method="kl_tuning", spec=SHORT | {"hard": hard}))
    assert found[0].before == found[1].before  # KL, not the text's own loss
    assert found[0].after["kl_to_parent"] != found[1].after["kl_to_parent"]


@pytest.mark.parametrize("given", [{}, {"learning_rate": 5e-3}])
def test_the_usual_learning_rate_is_less_near_the_parent(parent, child, tmp_path, monkeypatch, given):
    asked = []

    def watched(*arguments, **settings):
        asked.append(arguments[3])
        return loop.train(*arguments, **settings)

    monkeypatch.setattr("penjing.stages.tune.train", watched)
    tune(child, tmp_path / "tuned", parent=parent, data=make_corpus(), spec=SHORT | given)
    assert asked[0].learning_rate == (5e-3 if given else qat.Spec().learning_rate)
    assert asked[0].by_first_loss == (not given)


@pytest.mark.parametrize("method", ["qat", "kl_tuning"])
def test_where_nothing_better_comes_the_child_stays_as_it_was(parent, tmp_path, method):
    quantize(parent, tmp_path / "child", spec={"bits": 8, "group_size": 16})
    child, spec = open_checkpoint(tmp_path / "child"), SHORT | {"learning_rate": 2.0}
    evidence = tune(child, tmp_path / "tuned", parent=parent, data=make_corpus(), method=method, spec=spec)
    assert evidence.after["steps"] == SHORT["steps"]
    assert evidence.after["best_step"] == 0
    assert evidence.after["kl_to_parent"] == evidence.before["kl_to_parent"]
    tuned = open_checkpoint(tmp_path / "tuned")
    for part in child.parts():
        np.testing.assert_array_equal(tuned.read_part(part), child.read_part(part))
        for name, packed in child.packed(part.name).items() if part.name in child.quantized else ():
            np.testing.assert_array_equal(tuned.packed(part.name)[name], packed)


@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "gemma3_text", "llama-tied-biased"])
def test_a_student_predicts_as_its_child_in_every_family(tiny_model, tmp_path, family):
    """Fused, interleaved and tied tensors, norms that add one, a part that is left in float."""
    parent = open_checkpoint(tiny_model(family).path)
    overrides = [("*.k", {"bits": 16}), ("embed", {"bits": 8})]
    quantize(parent, tmp_path / "child", spec={"bits": 3, "group_size": 4, "symmetric": False}, overrides=overrides)
    child = open_checkpoint(tmp_path / "child")
    made = student(child, parent, lambda *given: qat.tunable(qat.Spec(), *given), vector_rate=0.3)
    assert set(made.matrices) == set(child.quantized)
    assert len(made.vectors) == len({part.source for part in parent.parts() if part.name.endswith("norm")})
    token_1T = torch.arange(11)[None]
    logit_1TV = made.model(token_1T).logits
    assert torch.equal(logit_1TV, torch_model.load(child)(token_1T).logits)
    logit_1TV.square().sum().backward()
    gradients = {name: p.grad for name, p in made.model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    # what is trained changes what is computed, also without a gradient
    with torch.no_grad():
        for matrix in made.matrices.values():
            matrix.change_ON += 0.5
        assert not torch.equal(made.model(token_1T).logits, logit_1TV)


def test_codes_are_read_as_they_were_quantized(parent, tmp_path):
    quantize(parent, tmp_path / "child", spec={"bits": 5, "group_size": 8, "symmetric": False})
    child = open_checkpoint(tmp_path / "child")
    for part in child.parts():
        if part.name in child.quantized:
            found = read_quantized(child, part.name)
            np.testing.assert_array_equal(found.dequantize().numpy(), child.read_part(part))


def test_the_teacher_is_the_parent(parent):
    token_1T = torch.arange(11)[None]
    wanted = torch_model.load(parent)(token_1T).logits
    assert torch.equal(teacher(parent, "f32")(token_1T).logits, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        cheap = teacher(parent, "bf16")
        rounded = torch_model.load(parent)(token_1T).logits
        assert torch.equal(cheap(token_1T).logits, rounded)  # autocast would round the same weights
    assert not any(parameter.requires_grad for parameter in cheap.parameters())


def test_what_cannot_be_tuned_is_said(parent, child, tmp_path, tiny_model):
    out, data = tmp_path / "tuned", make_corpus()
    with pytest.raises(PenjingError, match="how long"):
        tune(child, out, parent=parent, data=data)
    with pytest.raises(PenjingError, match="no setting 'learning_rat'"):
        tune(child, out, parent=parent, data=data, spec=SHORT | {"learning_rat": 1})
    with pytest.raises(PenjingError, match="only a folder that `penjing quantize` wrote"):
        tune(parent, out, parent=parent, data=data, spec=SHORT)
    with pytest.raises(PenjingError, match="is not the model"):
        tune(child, out, parent=open_checkpoint(tiny_model("llama").path), data=data, spec=SHORT)
    with pytest.raises(PenjingError, match="not one window"):
        tune(child, out, parent=parent, data=Corpus(("a", "b")), spec=SHORT)
    tune(child, out, parent=parent, data=data, spec=SHORT)
    with pytest.raises(PenjingError, match="already there"):
        tune(child, out, parent=parent, data=data, spec=SHORT)


# One interpreter that imports torch once and forks a process for each run: that is what gets killed.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_tune import SHORT, make_corpus, open_checkpoint, torch, tune
import penjing.stages.tune as stage
torch.set_num_threads(1)
stage._SAVE_EVERY_S = 0.0
parent, child, out = open_checkpoint(sys.argv[2]), open_checkpoint(sys.argv[3]), Path(sys.argv[4])
def started(folder):
    process = os.fork()
    if process == 0:
        tune(child, folder, parent=parent, data=make_corpus(), spec=SHORT, force=folder.exists())
        os._exit(0)
    return process
start = time.perf_counter()
os.waitpid(started(out.with_name("at once")), 0)
whole_s = time.perf_counter() - start
chance, kills = random.Random(0), 0
state = out.with_name(out.name + ".tuning") / "state.safetensors"
def written():
    return state.stat().st_mtime_ns if state.exists() else 0
while not out.exists() or state.parent.exists():  # or killed as it cleared up: --force goes on from there
    process = started(out)
    if kills < 10 and not out.exists():
        # after a while or a bit after the next state, whichever comes first: it never gets through at once
        deadline, known = time.perf_counter() + chance.uniform(0.2, 1.5) * whole_s, written()
        while time.perf_counter() < deadline and written() == known:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.02) * whole_s)
        os.kill(process, signal.SIGKILL)
        kills += 1
    os.waitpid(process, 0)
print(kills)
"""


def test_killed_at_any_moment_and_run_again_it_gives_the_same_bytes(talker, child, tmp_path):
    arguments = [str(Path(__file__).parent), str(talker), str(tmp_path / "child"), str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1
    first, second = tmp_path / "at once", tmp_path / "killed"
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    for name in names - {"evidence.jsonl"}:  # which tells times
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at once", "child", "killed"]


def test_a_budget_that_cannot_be_met_is_told_at_once(parent, child, tmp_path):
    told = []
    with pytest.raises(PenjingError, match="1 MB are allowed") as error:
        tune(child, tmp_path / "out", parent=parent, data=make_corpus(), spec=SHORT, budget=Budget(max_bytes=1_000_000))
    assert "activations" in error.value.where
    assert not (tmp_path / "out").exists()
    tune(child, tmp_path / "out", parent=parent, data=make_corpus(), spec=SHORT, tell=told.append)
    assert "MB of memory at most" in told[0]


def test_the_parent_writes_nothing_where_something_else_is_wrong(parent, child, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_text, "generated_text", lambda *given, **named: pytest.fail("it wrote"))
    with pytest.raises(PenjingError, match="how long"):
        tune(child, tmp_path / "out", parent=parent, data="self")
    with pytest.raises(PenjingError, match="1 MB are allowed"):
        tune(child, tmp_path / "out", parent=parent, data="self", spec=SHORT, budget=Budget(max_bytes=1_000_000))
