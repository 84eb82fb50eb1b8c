"""Preferences and pairs are learned by objectives of their own: the chosen answer gains, partners find each other."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'penjing[fit]'")
peft = pytest.importorskip("peft", reason="pip install 'penjing[fit]'")

import penjing  # noqa: E402
from penjing import evidence  # noqa: E402
from penjing.checkpoint import open_checkpoint  # noqa: E402
from penjing.errors import PenjingError  # noqa: E402
from penjing.measure.torch_model import load  # noqa: E402
from penjing.stages.adapt import Training, adapt  # noqa: E402
from penjing.stages.examples import read_examples  # noqa: E402
from penjing.stages.objectives import Tasks, choose  # noqa: E402
from penjing.train.batch import document, pack  # noqa: E402
from penjing.train.objectives.contrastive import embeddings  # noqa: E402

TRAINING = {"steps": 30, "rows": 1, "length": 128, "rate": 1e-2, "precision": "f32", "evaluations": 3}


def _jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def preferences(tmp_path):
    rows = [
        {"prompt": f"is {n} a number", "chosen": ["yes sir", "yes"][n % 2], "rejected": "no way"} for n in range(40)
    ]
    return _jsonl(tmp_path / "preferences.jsonl", rows)


@pytest.fixture
def partners(tmp_path):
    rows = [{"anchor": f"what costs {n}", "positive": f"{n} euros is the price"} for n in range(100, 140)]
    return _jsonl(tmp_path / "partners.jsonl", rows)


def _examples(parent, source, **settings):
    return read_examples(parent, [source], max_tokens=64, validation=0.2, **settings)


def _margin(model, held_out):
    """Nats by which chosen answers are likelier, the plainest way: a document at a time."""
    found = []
    for entry in held_out:
        with torch.no_grad():
            logp_TV = model.eval()(torch.from_numpy(entry.token_T.astype(np.int64))[None]).logits[0].log_softmax(-1)
        at = np.flatnonzero(entry.target_T)
        found.append(float(logp_TV[at - 1, entry.token_T[at]].sum()))
    return float(np.mean(np.subtract(found[0::2], found[1::2])))


@pytest.mark.parametrize(
    ("objective", "method"), [("dpo", "lora"), ("orpo", "lora"), ("dpo", "bitfit"), ("dpo", "prompt")]
)
def test_the_chosen_answer_gains_over_the_rejected_one(talker, preferences, tmp_path, objective, method):
    parent = open_checkpoint(talker)
    examples = _examples(parent, preferences, objective=objective)
    assert (examples.objective, examples.group, len(examples.held_out) % 2) == (objective, 2, 0)
    decode = penjing.open(talker).tokenizer.decode
    said = [decode(entry.token_T[entry.target_T].tolist()) for entry in examples.held_out]
    assert {*said[0::2]} == {"yes", "yes sir"}
    assert {*said[1::2]} == {"no way"}
    done = adapt(parent, tmp_path / "a", examples, method=method, training=Training(**TRAINING))
    before, after = _margin(load(parent), examples.held_out), done.after["margin"]
    if method == "bitfit":
        adapted = load(open_checkpoint(tmp_path / "a"))
    else:
        adapted = peft.PeftModel.from_pretrained(load(parent), tmp_path / "a")
    if method != "prompt":  # one that is not trained is no base
        assert done.before["margin"] == pytest.approx(before, rel=1e-3, abs=1e-3)
        assert after == pytest.approx(_margin(adapted, examples.held_out), rel=1e-3, abs=1e-3)
    assert after > before + 1.0
    assert done.after["loss"] < done.before["loss"]
    if objective == "dpo":
        assert done.before["loss"] == pytest.approx(np.log(2), rel=1e-3 if method != "prompt" else 1.0)
    assert done.settings["train"]["objective"] == objective


def test_preferences_may_be_learned_as_texts(talker, preferences):
    parent = open_checkpoint(talker)
    found = _examples(parent, preferences, objective="causal_lm")
    assert (found.objective, found.group) == ("causal_lm", 1)
    assert _examples(parent, preferences).objective == "dpo"


def _found_partners(model, held_out):
    """How often an anchor's nearest text is its own positive."""
    with torch.no_grad():
        embedding_DH = embeddings(model.eval(), pack(held_out))
    nearest_P = (embedding_DH[0::2] @ embedding_DH[1::2].T).argmax(1)
    return float((nearest_P == torch.arange(len(nearest_P))).float().mean())


def test_partners_find_each_other(talker, partners, tmp_path):
    parent = open_checkpoint(talker)
    examples = _examples(parent, partners)
    assert (examples.objective, examples.group) == ("contrastive", 2)
    done = adapt(parent, tmp_path / "a", examples, training=Training(**TRAINING | {"rows": 2, "length": 256}))
    assert done.after["loss"] < 0.8 * done.before["loss"]
    adapted = peft.PeftModel.from_pretrained(load(parent), tmp_path / "a")
    assert _found_partners(adapted, examples.held_out) > _found_partners(load(parent), examples.held_out)


def test_hard_negatives_make_groups_of_three(talker, tmp_path):
    rows = [{"anchor": f"a {n}", "positive": f"b {n}", "negative": f"c {n}"} for n in range(20)]
    parent = open_checkpoint(talker)
    examples = _examples(parent, _jsonl(tmp_path / "three.jsonl", rows))
    assert examples.group == 3
    assert len(examples.held_out) % 3 == 0
    done = adapt(parent, tmp_path / "a", examples, training=Training(**TRAINING | {"steps": 6}))
    assert done.after["loss"] < done.before["loss"]
    rows[3]["negative"] = ""
    with pytest.raises(PenjingError, match="with and without a negative"):
        _examples(parent, _jsonl(tmp_path / "mixed.jsonl", rows))


def test_gradients_of_a_preference_choose_weights_too(talker, preferences, tmp_path):
    parent = open_checkpoint(talker)
    examples = _examples(parent, preferences)
    training = Training(**TRAINING | {"steps": 4})
    done = adapt(parent, tmp_path / "a", examples, method="gradient", spec={"rank": 2}, training=training)
    assert done.after["margin"] > done.before["margin"]


@pytest.mark.parametrize(
    ("kind", "asked"), [("text", "dpo"), ("pairs", "orpo"), ("preference", "contrastive"), ("chat", "magic")]
)
def test_an_objective_that_the_data_is_not_for(kind, asked):
    with pytest.raises(PenjingError, match=f"{asked} does not learn from data of the kind {kind}") as caught:
        choose(kind, asked, "here")
    assert choose(kind, "auto", "here") in caught.value.attempt


def test_data_of_two_kinds_is_refused(talker, preferences, partners):
    with pytest.raises(PenjingError, match="contrastive and dpo in one training"):
        read_examples(open_checkpoint(talker), [preferences, partners])


def test_groups_stay_whole_and_rows_are_about_full():
    documents = [document([number] * 8) for number in range(1, 25)]
    batches = Tasks({"data": documents}, group=2, alone=True, rows=2, length=40, seed=0)
    for step in range(6):
        (batch,) = batches.at(step)
        assert batch.token_BT.shape == (2, 2 * 2 * 8)  # two groups of 16 tokens fit 40
        first_G = batch.token_BT[:, ::16]
        assert (first_G % 2 == 1).all()
        assert torch.equal(batch.token_BT[:, 8::16], first_G + 1)
    alone = Tasks({"data": documents}, group=2, alone=True, rows=1, length=1, seed=0)
    together = Tasks({"data": documents}, group=2, alone=False, rows=1, length=1, seed=0)
    assert [int(tasks.at(0)[0].document_BT.max()) + 1 for tasks in (alone, together)] == [2, 4]


def test_tensorboard_on_request(talker, preferences, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    parent = open_checkpoint(talker)
    examples, training = _examples(parent, preferences), Training(**TRAINING | {"steps": 4, "tensorboard": True})
    for method in ("lora", "bitfit"):
        adapt(parent, tmp_path / method, examples, method=method, training=training)
        events = accumulator.EventAccumulator(str(tmp_path / method / "tensorboard")).Reload()
        (record,) = evidence.read(tmp_path / method / "evidence.jsonl")
        wanted = [(point["step"], pytest.approx(point["loss"])) for point in record["after"]["training"]["curve"]]
        assert [(event.step, event.value) for event in events.Scalars("train/loss")] == wanted
        assert len(wanted) == 4
    open_checkpoint(tmp_path / "bitfit")
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(PenjingError, match="TensorBoard is not installed"):
        adapt(parent, tmp_path / "b", examples, training=training)
    assert not (tmp_path / "b.run").exists()
