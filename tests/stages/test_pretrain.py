"""From scratch: a model that has learnt its text, opens, packs and runs; the same bytes again; what is not text."""

from __future__ import annotations

import json
import random

import pytest
from typer.testing import CliRunner

from penjing import api
from penjing.checkpoint import open_checkpoint
from penjing.cli._app import application
from penjing.data.dataset import open_dataset
from penjing.errors import PenjingError
from penjing.evidence import read
from penjing.stages import EVIDENCE
from penjing.stages.pretrain import Plan, pretrain

WORDS = ["pine", "tray", "moss", "stone", "water", "root", "leaf", "wire", "cut", "grow", "old", "small"]
PLAN = {"num_parameters": 60_000, "vocab_size": 300, "context": 32, "rows": 4, "steps": 150, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Sentences of a few words in pairs that always go together: something to learn."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    with path.open("w") as file:
        for _ in range(200):
            pairs = [draw.randrange(6) for _ in range(30)]
            said = " ".join(f"{WORDS[2 * n]} {WORDS[2 * n + 1]}" for n in pairs)
            file.write(json.dumps({"text": said}) + "\n")
    return path


def test_a_decoder_learns_packs_and_runs(text, tmp_path):
    evidence = pretrain(open_dataset(text), tmp_path / "new", Plan(**PLAN, validations=2))
    after = evidence.after
    first = after["validation"][0]["loss"]
    assert after["bits_per_character"] < 0.5 * first
    # validation and held-out text are of the same kind
    assert after["bits_per_character"] == pytest.approx(after["validation"][-1]["loss"], rel=0.1)
    checkpoint = open_checkpoint(tmp_path / "new")
    assert checkpoint.architecture.eos_token_ids == (0,)
    assert read(tmp_path / "new" / EVIDENCE)[0]["stage"] == "pretrain"
    assert not (tmp_path / "new.run").exists()
    api.open(tmp_path / "new").pack(tmp_path / "new.penjing")
    with api.open(tmp_path / "new.penjing") as model:
        said = model.generate("moss stone pine", max_tokens=24).split()  # most words come after a space
    assert said[0] == "tray", after["bits_per_character"]
    with pytest.raises(PenjingError, match="already there"):
        pretrain(open_dataset(text), tmp_path / "new", Plan(**PLAN))


def test_the_same_seed_gives_the_same_bytes(text, tmp_path):
    plan = Plan(**(PLAN | {"steps": 3}))
    weights = []
    for name in ("one", "two"):
        pretrain(open_dataset(text), tmp_path / name, plan)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_heads_that_are_turned_in_part(text, tmp_path):
    plan = Plan(**(PLAN | {"steps": 3, "family": "gpt_neox"}))
    pretrain(open_dataset(text), tmp_path / "neox", plan)
    arch = open_checkpoint(tmp_path / "neox").architecture
    assert 0 < 2 * len(arch.ropes[0].inv_freq) < arch.head_dim


def test_an_encoder_opens_in_transformers(text, tmp_path):
    transformers = pytest.importorskip("transformers")
    options = [
        "--family",
        "bert",
        "--size",
        "60k",
        "--vocab",
        "300",
        "--context",
        "32",
        "--rows",
        "4",
        "--steps",
        "4",
        "--json",
    ]
    found = CliRunner().invoke(application(), ["pretrain", str(text), str(tmp_path / "new"), *options])
    assert found.exit_code == 0, found.output
    after = json.loads(found.stdout.splitlines()[-1])["after"]
    assert 0 <= after["masked_accuracy"] <= 1
    assert 0 <= after["order_accuracy"] <= 1
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "new")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert tokenizer.mask_token_id == 3
    assert model(**tokenizer("pine [MASK]", return_tensors="pt")).logits.shape[-1] == 300


def test_a_held_out_text_of_ones_own_judges(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("pine tray moss stone")
    plan = Plan(**(PLAN | {"steps": 2}))
    evidence = pretrain(open_dataset(text), tmp_path / "new", plan, held_out=open_dataset(other))
    assert evidence.after["characters"] == 20


def test_what_is_not_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "t", "label": 1}\n')
    with pytest.raises(PenjingError, match="classification data"):
        pretrain(open_dataset(path), tmp_path / "new", Plan())


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(text, tmp_path):
    plan = Plan(**(PLAN | {"steps": 6}))

    def stop(what, done, of):
        if what == "held-out text":
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        pretrain(open_dataset(text), tmp_path / "new", plan, progress=stop)
    assert not (tmp_path / "new").exists()
    pretrain(open_dataset(text), tmp_path / "new", plan, progress=lambda what, done, of: seen.append(what))
    assert not any(what.startswith("loss") for what in seen)  # all steps were there
    pretrain(open_dataset(text), tmp_path / "whole", plan)
    new, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("new", "whole"))
    assert new == whole
    assert [bool(record.get("failed")) for record in read(tmp_path / "new" / EVIDENCE)] == [True, False]
