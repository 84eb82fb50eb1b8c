"""What was learnt stays: from an adapter into weights, codes and a packed file, through the engine; or beside it.

Shapes: T tokens of the lesson, V vocabulary.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("peft", reason="pip install 'penjing[fit]'")

from typer.testing import CliRunner

import penjing
from penjing.checkpoint import open_checkpoint
from penjing.cli._app import application

LESSON = "the heron waits by the third sluice until the tide turns"
START = "the heron waits"


def _run(*arguments):
    return CliRunner().invoke(application(), [*map(str, arguments)])


def _found(*arguments):
    done = _run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def lesson(talker, tmp_path_factory):
    """An adapter that has learnt one sentence by heart."""
    folder = tmp_path_factory.mktemp("lesson")
    (folder / "lesson.jsonl").write_text(f"{json.dumps({'text': LESSON})}\n")
    train = [f"--train={entry}" for entry in ("steps=150", "rate=1e-2", "rows=1", "length=64", "precision=f32")]
    options = ("--data", folder / "lesson.jsonl", "--validation", 0, "--set", "rank=8", *train)
    found = _found("adapt", talker, folder / "lora", "--method", "lora", *options)
    return folder / "lora", found["after"]["loss"]


def _loss(packed, adapter=None):
    """Nats a token of the lesson, by the engine."""
    with penjing.open(packed, threads=1) as model:
        if adapter:
            model.load_adapter(adapter)
        token_T = model.tokenizer.encode(LESSON).ids
        logit_TV = model.session.forward(token_T, len(token_T)).astype(np.float64)[:-1]
    shifted_TV = logit_TV - logit_TV.max(1, keepdims=True)
    logp_TV = shifted_TV - np.log(np.exp(shifted_TV).sum(1, keepdims=True))
    return -float(logp_TV[np.arange(len(logp_TV)), token_T[1:]].mean())


def _answer(packed, *options):
    return _found("run", packed, START, "--raw", "--max-tokens", len(LESSON) - len(START), *options)["text"]


def test_what_was_learnt_is_in_the_file_that_ships(talker, packed_talker, lesson, tmp_path):
    adapter, learnt = lesson
    found = _found("adapters", "merge", talker, adapter, tmp_path / "whole")
    assert found["out"] == str(tmp_path / "whole")
    _found("quantize", tmp_path / "whole", tmp_path / "codes", "--set", "bits=8", "--set", "group_size=32")
    _found("pack", tmp_path / "codes", tmp_path / "whole.penjing")
    base, shipped = _loss(packed_talker), _loss(tmp_path / "whole.penjing")
    assert base > math.log(200)  # random weights know nothing about the 257 bytes
    assert learnt < 0.05 * base
    assert shipped < 0.05 * base
    assert _answer(tmp_path / "whole.penjing") == LESSON.removeprefix(START)
    assert _answer(packed_talker) != LESSON.removeprefix(START)


def test_the_same_beside_the_packed_base(talker, packed_talker, lesson, tmp_path):
    adapter, _ = lesson
    found = _found("adapters", "stack", talker, adapter, tmp_path / "lesson.adapter")
    assert found["matrices"] == 2 * 7
    assert found["bytes"] <= (tmp_path / "lesson.adapter").stat().st_size
    _found("adapters", "merge", talker, adapter, tmp_path / "whole")
    _found("pack", tmp_path / "whole", tmp_path / "whole.penjing")
    merged = _loss(tmp_path / "whole.penjing")
    for beside in (adapter, tmp_path / "lesson.adapter"):
        # float16 of weights or of what is added to them: 2^-11 of each, in sums of nats over two layers
        assert _loss(packed_talker, beside) == pytest.approx(merged, rel=0.05, abs=0.01)
        assert _answer(packed_talker, "--adapter", beside) == LESSON.removeprefix(START)


def test_taken_out_again_nothing_is_known(talker, packed_talker, lesson, tmp_path):
    adapter, _ = lesson
    _found("adapters", "merge", talker, adapter, tmp_path / "whole")
    _found("adapters", "remove", tmp_path / "whole", adapter, tmp_path / "again")
    again, before = open_checkpoint(tmp_path / "again"), open_checkpoint(talker)
    eps = float(np.finfo(np.float32).eps)
    for name in before.tensors:
        size = float(np.abs(before.read(name)).max() + np.abs(open_checkpoint(tmp_path / "whole").read(name)).max())
        np.testing.assert_allclose(again.read(name), before.read(name), rtol=0, atol=2 * eps * size)
    _found("pack", tmp_path / "again", tmp_path / "again.penjing")
    assert _loss(tmp_path / "again.penjing") == pytest.approx(_loss(packed_talker), rel=1e-3)


def test_weights_are_of_adapters_in_order(talker, packed_talker, lesson, tmp_path):
    adapter, _ = lesson
    _found("adapters", "stack", talker, adapter, adapter, tmp_path / "none.adapter", "--weights", "1,-1")
    base = _loss(packed_talker)
    assert _loss(packed_talker, tmp_path / "none.adapter") == pytest.approx(base, rel=1e-3)
    half = _found("adapters", "stack", talker, adapter, tmp_path / "half.adapter", "--weights", "0.5")
    assert half["matrices"] == 2 * 7
    assert _loss(packed_talker, adapter) < _loss(packed_talker, tmp_path / "half.adapter") < base


def test_what_cannot_be_done_is_said_and_nothing_is_written(talker, lesson, tmp_path):
    adapter, _ = lesson
    out = tmp_path / "out"
    for arguments in (
        ("merge", talker, tmp_path / "nowhere", out),
        ("merge", talker, adapter, out, "--weights", "1,2"),
        ("stack", talker, adapter, out, "--weights", "much"),
        ("stack", talker, talker, out),
    ):
        done = _run("adapters", *arguments)
        assert done.exit_code == 1, done.output
        assert not out.exists()
    assert _run("adapters", "merge", talker, adapter).exit_code == 2
    _found("adapters", "stack", talker, adapter, out)
    before = out.read_bytes()
    assert _run("adapters", "stack", talker, adapter, out, "--weights", "0.5").exit_code == 1
    assert out.read_bytes() == before
    _found("adapters", "stack", talker, adapter, out, "--weights", "0.5", "--force")
    assert out.read_bytes() != before
