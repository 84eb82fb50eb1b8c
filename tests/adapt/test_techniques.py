"""What holds for every technique: it begins as the base model, trains what it says, and opens again with peft."""

from __future__ import annotations

import peft
import pytest
import torch

from penjing.adapt import gradient, lisa, techniques
from penjing.errors import PenjingError

#: settings that fit the tiny model: 3 layers, hidden size 36, inner size 52, 4 heads of 10, 2 of them for keys
SETTINGS = {
    "gradient": {"rank": 2},
    "layers": {"chosen": "-1"},
    "lisa": {"active": 2, "every": 1},
    "prompt": {"tokens": 3},
    "prefix": {"tokens": 3, "hidden": 5},
    "p_tuning_v2": {"tokens": 3},
    "adalora": {"first": 4, "rank": 2},
    **{name: {"rank": 3} for name in ("lora", "rslora", "dora", "pissa")},
}
# a layer's matrices: q 36→40, k and v 36→20, o 40→36, gate and up 36→52, down 52→36
_SUMS = 36 + 40 + 2 * (36 + 20) + 40 + 36 + 2 * (36 + 52) + 52 + 36
_WEIGHTS = 36 * 40 + 2 * 36 * 20 + 40 * 36 + 3 * 36 * 52
_OUTPUTS = 40 + 2 * 20 + 36 + 2 * 52 + 36
_ALL = 3 * (_WEIGHTS + 2 * 36) + 36 + 2 * 101 * 36
#: how many parameters are trained
COUNTS = {
    **dict.fromkeys(("lora", "rslora", "pissa"), 3 * 3 * _SUMS),
    "dora": 3 * (3 * _SUMS + _OUTPUTS),
    "adalora": 3 * 4 * (_SUMS + 7),
    "gradient": 3 * 2 * _SUMS,
    "ia3": 3 * (20 + 20 + 52),
    "norms": 3 * 2 * 36 + 36,
    "bitfit": 3 * _OUTPUTS,
    "attention": 3 * (36 * 40 + 2 * 36 * 20 + 40 * 36),
    "layers": _WEIGHTS + 2 * 36,
    "lisa": 3 * (_WEIGHTS + 2 * 36),
    "full": _ALL,
    "prompt": 3 * 36,
    "p_tuning_v2": 3 * 2 * 3 * 20,
    # 3 virtual tokens, and two layers with biases from there to keys and values of 3 layers
    "prefix": 3 * 20 + (20 + 1) * 5 + (5 + 1) * 2 * 3 * 20,
}
SINGLE = sorted(set(techniques()) - {"multitask", "qlora"})
#: methods that put something before the text, so the model is not the base model at first
PROMPTS = ("prompt", "prefix", "p_tuning_v2")


def _trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_all_of_them_are_here():
    assert sorted(COUNTS) == SINGLE


@pytest.mark.parametrize("method", SINGLE)
def test_so_many_parameters_are_trained(bench, method):
    model = bench.prepare(method, **SETTINGS.get(method, {})).model
    assert sum(p.numel() for p in _trained(model).values()) == COUNTS[method]


@pytest.mark.parametrize("method", sorted(set(SINGLE) - set(PROMPTS)))
def test_it_begins_as_the_base_model(bench, method):
    adapted = bench.prepare(method, **SETTINGS.get(method, {}))
    base_BTV = bench.logits(bench.base())
    # PiSSA and DoRA compute the same in another order: products of at most 52 terms through 3 layers of 7 matrices
    slack = 3 * 7 * 52 * torch.finfo(torch.float32).eps * float(base_BTV.abs().max())
    torch.testing.assert_close(bench.logits(adapted.model), base_BTV, rtol=0, atol=slack)


def test_training_may_end_before_a_layer_had_its_turn(bench):
    adapted = bench.prepare("lisa", active=1, every=10, steps=2)
    outcome = bench.train(adapted, steps=2)
    waiting = {name.split(".")[2] for name in outcome.unchanged}
    assert len(waiting) == 2
    assert len(outcome.unchanged) == 2 * len(_trained(adapted.model)) / 3


@pytest.mark.parametrize("method", SINGLE)
def test_training_changes_what_it_says_and_nothing_else(bench, method):
    adapted = bench.prepare(method, **SETTINGS.get(method, {}), steps=12)
    before = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
    trained = set(_trained(adapted.model))
    loss = bench.loss(adapted.model)
    outcome = bench.train(adapted, steps=12)
    if method != "pissa":  # its finish makes plain LoRA of it
        moved = {n for n, p in adapted.model.named_parameters() if not torch.equal(p.detach(), before[n])}
        assert moved == trained - set(outcome.unchanged)
    assert bench.loss(adapted.model) < loss


@pytest.mark.parametrize("method", SINGLE)
def test_a_saved_adapter_opens_with_peft_and_says_the_same(bench, method, tmp_path):
    adapted = bench.prepare(method, **SETTINGS.get(method, {}), steps=12)
    bench.train(adapted, steps=12)
    if not adapted.adapter:
        pytest.skip("the changed model is saved, not an adapter")
    adapted.model.save_pretrained(tmp_path / "adapter")
    opened = peft.PeftModel.from_pretrained(bench.base(), tmp_path / "adapter")
    wanted_BTV = bench.logits(adapted.model)
    slack = 3 * 7 * 52 * torch.finfo(torch.float32).eps * float(wanted_BTV.abs().max())
    torch.testing.assert_close(bench.logits(opened), wanted_BTV, rtol=0, atol=slack)
    assert not torch.allclose(wanted_BTV, bench.logits(bench.base()), atol=slack)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {"parts": "q,elbow"}),
        ("lora", {"parts": ""}),
        ("layers", {"chosen": "3"}),
        ("layers", {"chosen": "one"}),
        ("gradient", {"rank": 40}),
        ("adalora", {"first": 4, "rank": 4}),
        ("multitask", {}),
    ],
)
def test_settings_that_cannot_be(bench, method, settings):
    with pytest.raises(PenjingError):
        bench.prepare(method, **settings)


def test_unknown_technique(bench):
    with pytest.raises(PenjingError, match="no technique 'magic'"):
        bench.prepare("magic")


def test_tasks_share_one_part_and_have_one_of_their_own(bench, tmp_path):
    adapted = bench.prepare("multitask", tasks=("mail", "notes"), rank=3, own=2)
    before = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
    bench.train(adapted)
    changed = {n.split(".")[-2] for n, p in adapted.model.named_parameters() if n in before and not p.equal(before[n])}
    assert changed == {"shared", "mail", "notes"}
    for task, other in (("mail", "notes"), ("notes", "mail")):
        adapted.model.base_model.set_adapter(["shared", task])
        wanted_BTV = bench.logits(adapted.model)
        adapted.model.base_model.set_adapter(f"{task}_whole")
        slack = 3 * 7 * 52 * torch.finfo(torch.float32).eps * float(wanted_BTV.abs().max())
        torch.testing.assert_close(bench.logits(adapted.model), wanted_BTV, rtol=0, atol=slack)
        adapted.model.base_model.set_adapter(f"{other}_whole")
        assert not torch.allclose(bench.logits(adapted.model), wanted_BTV, atol=slack)


def test_layers_take_turns_and_none_is_left_out():
    spec = lisa.Spec(active=2, every=3)
    turns = [lisa.active_layers(spec, 5, step, seed=1) for step in range(18)]
    assert all(turn == turns[3 * (step // 3)] for step, turn in enumerate(turns))
    assert set().union(*turns[:9]) == set(range(5)) == set().union(*turns[9:])
    assert max(map(len, turns)) == 2


def test_the_largest_gradients_are_chosen():
    gradient_OI = torch.tensor([[1.0, -9.0, 2.0], [0.0, 3.0, -4.0], [8.0, 0.5, 0.1]])
    assert gradient.largest(gradient_OI, 1).bool().equal(gradient_OI.abs() >= 1.0)  # six are wanted
