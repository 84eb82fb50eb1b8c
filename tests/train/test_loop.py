"""Training goes on where it was killed, to the same bytes, and stops with a reason where it cannot."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from train.conftest import make_documents, make_tiny

from penjing.errors import PenjingError
from penjing.train.batch import PackedBatches
from penjing.train.loop import Settings, held_out_loss, train
from penjing.train.objectives import Loss
from penjing.train.objectives.causal_lm import Objective
from penjing.train.state import digest_all, read_record

SETTINGS = Settings(steps=12, learning_rate=1e-2, precision="f32", save_every_s=0.0)


def weights(model: nn.Module) -> dict[str, str]:
    return digest_all(model.named_parameters())


class Killed(BaseException):
    """Nothing in the loop catches it, as nothing catches a kill."""


def stop_before(step: int):
    def stop(now: int) -> None:
        if now == step:
            raise Killed

    return stop


def adapted():
    torch.manual_seed(1)
    return get_peft_model(make_tiny(), LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear"))


def test_saving_takes_a_twentieth_of_the_time_at_most(tiny, batches, tmp_path, monkeypatch):
    saves, clock = [], [0.0]

    def tick(seconds: float) -> None:
        clock[0] += seconds

    def save(*arguments, **more) -> None:
        saves.append(clock[0])
        tick(3.0)

    monkeypatch.setattr("penjing.train.loop.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("penjing.train.loop.state.save_tensors", save)
    train(
        tiny, Objective(), batches, replace(SETTINGS, steps=50, save_every_s=10.0), folder=tmp_path,
        before_step=lambda step: tick(4.0),
    )  # fmt: skip
    between = [after - before for before, after in itertools.pairwise(saves)]
    assert saves[0] == 12.0  # nothing is known yet of what it takes
    assert between[0] == pytest.approx(64.0, abs=4)  # 20 times 3 s after the end of the one before
    assert len(saves) == 4  # the last when it was done


def test_the_loss_falls_and_the_curve_says_so(tiny, batches, tmp_path):
    seen = []
    found = train(tiny, Objective(), batches, SETTINGS, folder=tmp_path, progress=lambda *what: seen.append(what))
    assert found.stopped_by == "steps"
    assert [point["step"] for point in found.curve] == list(range(1, 13))
    assert found.curve[-1]["loss"] < found.curve[0]["loss"] - 1
    assert found.tokens == sum(batch.num_tokens for step in range(12) for batch in batches.at(step))
    assert seen[-1][1:] == (12, 12)
    assert "tokens/s" in seen[-1][0]
    assert found.unchanged == ()


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("make", [make_tiny, adapted], ids=["full", "lora with dropout"])
def test_a_stopped_run_goes_on_to_the_same_bytes(make, optimizer, batches, tmp_path):
    settings = replace(SETTINGS, optimizer=optimizer, evaluate_every=4)
    validate = held_out_loss(Objective(), batches.at(50))
    whole, parts = make(), make()
    wanted = train(whole, Objective(), batches, settings, folder=tmp_path / "whole", validate=validate)
    for stop in (5, 9):
        with pytest.raises(Killed):
            train(parts, Objective(), batches, settings, folder=tmp_path / "parts", validate=validate,
                  before_step=stop_before(stop))  # fmt: skip
        parts = make()
    found = train(parts, Objective(), batches, settings, folder=tmp_path / "parts", validate=validate)
    assert weights(parts) == weights(whole)
    assert [point["loss"] for point in found.curve] == [point["loss"] for point in wanted.curve]
    assert found.validation == wanted.validation
    again = make()
    assert train(again, Objective(), batches, settings, folder=tmp_path / "parts", validate=validate).steps == 12
    assert weights(again) == weights(whole)


_KILLED = """
import sys; sys.path[:0] = {paths!r}
import torch; torch.set_num_threads({threads})  # sums in another order are other bytes
from pathlib import Path
from train.conftest import *
from train.test_loop import SETTINGS, Objective, train
batches = PackedBatches(make_documents(), rows=2, length=32)
train(make_tiny(), Objective(), batches, SETTINGS_HERE, folder=Path({folder!r}))
"""


def test_kill_9(batches, tmp_path):
    settings = replace(SETTINGS, steps=400)
    script = _KILLED.format(
        paths=[str(Path(__file__).parents[1])], threads=torch.get_num_threads(), folder=str(tmp_path / "killed")
    )
    script = script.replace("SETTINGS_HERE", repr(settings))
    job = subprocess.Popen([sys.executable, "-c", "from penjing.train.loop import Settings\n" + script])
    state = tmp_path / "killed" / "state.safetensors"
    deadline = time.monotonic() + 60
    while not state.exists() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    job.kill()
    job.wait()
    done = read_record(state)["step"]
    assert 0 < done < 400
    settings = replace(settings, save_every_s=60)
    one, other = make_tiny(), make_tiny()
    train(one, Objective(), batches, settings, folder=tmp_path / "killed")
    train(other, Objective(), batches, settings, folder=tmp_path / "whole")
    assert weights(one) == weights(other)


def test_other_data_is_refused(tiny, batches, tmp_path):
    with pytest.raises(Killed):
        train(tiny, Objective(), batches, SETTINGS, folder=tmp_path, before_step=stop_before(3))
    changed = PackedBatches(make_documents(seed=1), rows=2, length=32)
    with pytest.raises(PenjingError, match="other data"):
        train(make_tiny(), Objective(), changed, SETTINGS, folder=tmp_path)
    with pytest.raises(PenjingError, match="other settings"):
        train(make_tiny(), Objective(), batches, replace(SETTINGS, learning_rate=1.0), folder=tmp_path)
    with pytest.raises(PenjingError, match="other weights"):
        train(make_tiny(initializer_range=0.5), Objective(), batches, SETTINGS, folder=tmp_path)


@dataclass(frozen=True)
class Spoiled:
    """From some step on the loss is multiplied by what spoils it."""

    factor: float
    after: int
    calls: list[int]

    def __call__(self, model, batch) -> Loss:
        self.calls.append(1)
        found = Objective()(model, batch)
        return Loss(found.total * (self.factor if len(self.calls) > self.after else 1.0), found.count)


@pytest.mark.parametrize(
    ("factor", "reason"), [(math.nan, "loss is nan"), (math.inf, "loss is inf"), (1e6, "exploded")]
)
def test_a_spoiled_step_stops_with_the_last_good_state(factor, reason, tiny, batches, tmp_path):
    settings = replace(SETTINGS, save_every_s=1e9)
    with pytest.raises(PenjingError, match=reason):
        train(tiny, Spoiled(factor, 9, []), batches, settings, folder=tmp_path / "spoiled")
    assert read_record(tmp_path / "spoiled" / "state.safetensors")["step"] == 9
    good = make_tiny()
    with pytest.raises(Killed):
        train(good, Objective(), batches, settings, folder=tmp_path / "good", before_step=stop_before(9))
    assert weights(tiny) == weights(good)


def test_a_learning_rate_that_diverges_is_noticed(tiny, batches, tmp_path):
    with pytest.raises(PenjingError, match=r"diverges|explode|nan|inf"):
        train(tiny, Objective(), batches, replace(SETTINGS, learning_rate=30.0, steps=80), folder=tmp_path)


def test_a_full_disk_leaves_the_last_state(tiny, batches, tmp_path):
    """A limit on the size of files stands for the disk; a process of its own, since the limit cannot be taken back."""
    with pytest.raises(Killed):
        train(tiny, Objective(), batches, SETTINGS, folder=tmp_path, before_step=stop_before(4))
    before = (tmp_path / "state.safetensors").read_bytes()
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from train.test_loop import SETTINGS, Objective, PackedBatches, PenjingError, make_documents, make_tiny, train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, {len(before) // 2}))
batches = PackedBatches(make_documents(), rows=2, length=32)
try:
    train(make_tiny(), Objective(), batches, SETTINGS, folder={str(tmp_path)!r})
except PenjingError as error:
    sys.exit(7 if "too large" in error.fact else 2)
"""
    # not a fork: torch's threads do not survive one
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 7
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not [*tmp_path.glob(".*")]


def test_training_that_changes_nothing_is_an_error(tiny, batches, tmp_path):
    with pytest.raises(PenjingError, match="changed nothing"):
        train(tiny, Objective(), batches, replace(SETTINGS, learning_rate=0.0), folder=tmp_path)


def test_a_parameter_without_a_gradient_is_an_error(tiny, batches, tmp_path):
    tiny.forgotten = nn.Parameter(torch.ones(3))
    with pytest.raises(PenjingError, match="does not depend") as caught:
        train(tiny, Objective(), batches, SETTINGS, folder=tmp_path)
    assert caught.value.where == "forgotten"


def test_a_frozen_parameter_that_changes_is_an_error(tiny, batches, tmp_path):
    tiny.lm_head.weight.requires_grad_(False)

    def meddle(step: int) -> None:
        tiny.lm_head.weight.data[0, 0] += 1

    with pytest.raises(PenjingError, match="frozen parameters changed"):
        train(tiny, Objective(), batches, SETTINGS, folder=tmp_path, after_step=meddle)


def test_nothing_to_train_is_an_error(tiny, batches, tmp_path):
    with pytest.raises(PenjingError, match="nothing to train"):
        train(tiny.requires_grad_(False), Objective(), batches, SETTINGS, folder=tmp_path)


def test_patience_keeps_the_best(tiny, batches, tmp_path):
    losses = iter([9.0, 3.0, 2.0, 2.5, 2.5, 2.5, 2.5])
    at = {}

    def validate(model) -> float:
        at[len(at)] = weights(model)
        return next(losses)

    settings = replace(SETTINGS, evaluate_every=2, patience=2)
    found = train(tiny, Objective(), batches, settings, folder=tmp_path, validate=validate)
    assert (found.stopped_by, found.steps, found.best_step) == ("patience", 8, 4)
    assert weights(tiny) == at[2]


def test_pieces_of_a_batch_give_the_same_step(batches, tmp_path):
    one, other = make_tiny(), make_tiny()
    train(one, Objective(), batches, replace(SETTINGS, steps=1), folder=tmp_path / "one")
    train(other, Objective(), batches, replace(SETTINGS, steps=1, micro_tokens=1), folder=tmp_path / "other")
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        # Adam's first step is the learning rate in the direction of the sign: only tiny gradients may differ
        assert float((a - b).abs().gt(1e-4).float().mean()) < 0.01


def test_bf16_gives_frozen_weights_back_bit_for_bit(batches, tmp_path):
    model = adapted()
    before = weights(model)
    held = []
    found = train(model, Objective(), batches, replace(SETTINGS, precision="bf16"), folder=tmp_path,
                  after_step=lambda step: held.append(model.base_model.model.lm_head.weight.dtype))  # fmt: skip
    assert held[0] == torch.bfloat16
    assert found.precision == "bf16"
    after = weights(model)
    assert all((before[name] == after[name]) == (not p.requires_grad) for name, p in model.named_parameters())
    assert not (tmp_path / "frozen.safetensors").exists()
    assert found.curve[-1]["loss"] < found.curve[0]["loss"]


def test_checkpointing_changes_no_result(batches, tmp_path):
    one, other = make_tiny(), make_tiny()
    train(one, Objective(), batches, SETTINGS, folder=tmp_path / "one")
    train(other, Objective(), batches, replace(SETTINGS, checkpointing=True), folder=tmp_path / "other")
    assert weights(one) == weights(other)


def test_time_is_a_limit_too(tiny, batches, tmp_path):
    settings = replace(SETTINGS, steps=10**6, minutes=0.02, save_every_s=60)
    found = train(tiny, Objective(), batches, settings, folder=tmp_path)
    assert found.stopped_by == "minutes"
    assert found.curve[-1]["lr"] < 0.3 * SETTINGS.learning_rate


@pytest.mark.parametrize(("loss", "share"), [(0.25, 0.5), (1.0, 1.0), (4.0, 2.0)])
def test_near_the_goal_steps_are_smaller(tiny, batches, tmp_path, loss, share):
    settings = replace(SETTINGS, by_first_loss=True)
    found = train(tiny, Objective(), batches, settings, folder=tmp_path / "near", validate=lambda model: loss)
    usual = train(make_tiny(), Objective(), batches, SETTINGS, folder=tmp_path / "usual")
    rates = [[point["lr"] for point in one.curve] for one in (found, usual)]
    assert rates[0] == [pytest.approx(share * rate) for rate in rates[1]]
