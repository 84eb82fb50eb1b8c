"""The only training loop: what has `requires_grad` is trained, step by step, and may be killed at any moment.

A step: the batches of that step, piece by piece, forward and backward; gradients divided by what was counted, checked,
clipped; the optimizer. Everything a later step depends on is in `state.safetensors` of the run's folder or a function
of the step's number (data, learning rate, dropout), so a run that goes on from there ends with the same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from penjing.errors import PenjingError
from penjing.evidence import peak_rss_bytes
from penjing.train import health, heap, optimizers, precision, state
from penjing.train.attention import attending
from penjing.train.batch import Batch, Batches
from penjing.train.forward import unwrapped
from penjing.train.fused import fused
from penjing.train.objectives import Loss
from penjing.train.parallel import Processes, Way, like, local

Progress = Callable[[str, int, int], None]
#: between two saves pass so many times what one takes: all weights of SmolLM2 with Adam's moments are 1.6 GB
_SAVING = 20


class Objective(Protocol):
    def __call__(self, model: Any, batch: Batch) -> Loss: ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """steps: of the optimizer. warmup: fraction of training. schedule: constant, linear or cosine.

    precision: f32, bf16 (products in bfloat16, sums and trained weights in float32), or auto: what is faster here.
    micro_tokens: a batch goes through the model in pieces of about so many tokens; 0: 512 where few parameters are
    trained, which saves activations, else 2048, since every piece adds to all gradients.
    evaluate_every: steps between validations; patience: stop after so many without a better one.
    minutes: stop by time, the learning rate falling with it. by_first_loss: the learning rate is that of a first
    held-out loss of 1, elsewhere times its root. checkpointing: recompute layers to save memory.
    save_every_s: between saves of the state at least, more where they would take over a twentieth of the time; 0: after
    every step.
    parallel: what several processes share, if there are several: rows (ddp), also weights (fsdp), or matrices (tensor).
    """

    steps: int
    learning_rate: float = 1e-4
    warmup: float = 0.03
    schedule: optimizers.Schedule = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: str = "auto"
    optimizer: str = "adamw"
    micro_tokens: int = 0
    checkpointing: bool = False
    evaluate_every: int = 0
    patience: int = 0
    save_every_s: float = 120.0
    minutes: float | None = None
    by_first_loss: bool = False
    device: str = "cpu"
    parallel: Way = "ddp"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What happened. `curve`: step, loss, norm, lr, tokens_per_s of each step; `validation`: step, loss.

    With validation the model has the weights of `best_step`, else those of the last. `unchanged` are trained parameters
    that are what they were, such as those of experts that no token chose.
    """

    steps: int
    tokens: int
    seconds: float
    curve: list[dict[str, float]]
    validation: list[dict[str, float]]
    best_step: int
    peak_rss_bytes: int
    stopped_by: str
    precision: str
    unchanged: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Record:
    """All of a run but tensors, as it is kept in the state."""

    arguments: dict[str, Any]
    precision: str
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # parameters that a step was to train: LISA's take turns
    touched: list[str] = field(default_factory=list)  # those that had a gradient
    stopped_by: str = ""

    @property
    def best_step(self) -> int:
        counted = [point for point in self.validation if point["step"] > 0]
        return int(min(counted, key=lambda point: point["loss"])["step"]) if counted else self.step


def train(
    model: Any,
    objective: Objective,
    batches: Batches,
    settings: Settings,
    *,
    folder: Path,
    validate: Callable[[Any], float] | None = None,
    progress: Progress | None = None,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    keep: Mapping[str, Tensor] | None = None,
) -> Trained:
    """Train `model` in place; again with the same arguments and folder, go on where it was stopped.

    `validate` gives a held-out loss. `before_step` and `after_step` (before gradients are cleared) are for methods that
    change what is trained as they go; they must depend on nothing but the step, the model and `keep`, tensors that they
    change in place and a run that goes on finds as they were. Raises PenjingError, the
    last good state kept, for a loss or gradient that is not sane, data that changed, a full disk, and where training
    changed nothing or something it should not.
    """
    run = _Run(model, objective, batches, settings, Path(folder), validate, progress)
    run.hooks = (before_step or (lambda step: None), after_step or (lambda step: None))
    run.keep = keep or {}
    with run.prepared():
        run.resume()
        run.steps()
        run.finish()
    return run.result()


def held_out_loss(objective: Objective, batches: Iterable[Batch], device: str = "cpu") -> Callable[[Any], float]:
    """A `validate`: the objective's mean over fixed batches, which are gone through each time."""

    def validate(model: Any) -> float:
        found = [objective(model, batch.to(device)) for batch in batches]
        return sum(float(loss.total) for loss in found) / max(1e-9, sum(loss.count for loss in found))

    return validate


class _Run:
    hooks: tuple[Callable[[int], None], Callable[[int], None]]
    keep: Mapping[str, Tensor]

    def __init__(
        self,
        model: Any,
        objective: Objective,
        batches: Batches,
        settings: Settings,
        folder: Path,
        validate: Callable[[Any], float] | None,
        progress: Progress | None,
    ) -> None:
        self.model, self.objective, self.batches, self.settings = model, objective, batches, settings
        self.folder, self.validate, self.report = folder, validate, progress or (lambda what, done, of: None)
        self.parameters: dict[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise PenjingError("nothing to train", attempt="parameters with requires_grad")
        trained = sum(p.numel() for p in self.parameters.values())
        held = chain(model.parameters(), model.buffers())  # a base of codes has no parameters
        few = trained < 0.1 * sum(tensor.numel() for tensor in held)
        self.micro_tokens = 512 if few else 2048
        self.processes = Processes(settings.parallel, settings.device)
        self.state_file, self.best_file = folder / "state.safetensors", folder / "best.safetensors"

    def prepared(self) -> ExitStack:
        """Everything that is only so while training lasts."""
        settings, stack = self.settings, ExitStack()
        stack.enter_context(self.processes.started())
        before = self._read_record()
        self.before = state.digest_all(self.model.named_parameters())
        chosen = before["precision"] if before else precision.choose(settings.precision, settings.device)
        self.record = _Record(self._arguments(), chosen)
        was_training, inner = self.model.training, unwrapped(self.model)
        stack.callback(self.model.train, was_training)
        self.model.to(settings.device)
        held = "f32" if self.processes.splits_weights else chosen  # FSDP wants one type
        spill = self.folder / f"frozen-{self.processes.rank}.safetensors"
        stack.enter_context(precision.frozen_held_in(held, self.model, spill))
        self.frozen = state.digest_all(self._frozen())
        stack.enter_context(attending(inner.base_model))
        stack.enter_context(fused(self.model))
        stack.enter_context(heap.kept())
        if settings.checkpointing:
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            stack.callback(inner.gradient_checkpointing_disable)
        self.run_on = self.processes.wrap(self.model)
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = optimizers.optimizer(settings.optimizer, self.parameters, settings.weight_decay)
        return stack

    def resume(self) -> None:
        before = self._read_record()
        if before is None:
            return
        for name, value in self.record.arguments.items():
            if before["arguments"].get(name) != value:
                raise PenjingError(
                    f"this folder holds a run with other {name}",
                    where=str(self.folder),
                    attempt="the same arguments and data to go on, or another folder to begin anew",
                )
        weights = {f"weight:{name}": p.data for name, p in self.parameters.items()}
        weights |= {f"keep:{name}": tensor for name, tensor in self.keep.items()}
        others, _ = state.load_tensors(self.state_file, weights)
        for name, tensor in others.items():
            kind, _, parameter = name.partition(":")
            weight = self.parameters[parameter]
            self.optimizer.state[weight][kind] = like(tensor, weight)
        self.record = _Record(**before)

    def steps(self) -> None:
        record, started = self.record, time.monotonic() - self.record.seconds
        saved, pause = time.monotonic(), self.settings.save_every_s
        self._validate_at(0)
        while not record.stopped_by:
            begin = time.monotonic()
            tokens = self._step()
            record.step += 1
            record.tokens += tokens
            now = time.monotonic()
            record.seconds = self.processes.same(now - started)
            record.curve[-1]["tokens_per_s"] = tokens / (now - begin)
            if self.settings.evaluate_every and record.step % self.settings.evaluate_every == 0:
                self._validate_at(record.step)
            record.stopped_by = self._stopped_by()
            self._tell()
            begin = time.monotonic()
            if self.processes.same(begin - saved) > pause:
                self._save()
                saved = time.monotonic()
                pause = pause and max(self.settings.save_every_s, _SAVING * self.processes.same(saved - begin))

    def _step(self) -> int:
        """One step of the optimizer; how many tokens it saw."""
        step, settings = self.record.step, self.settings
        batches = self.batches.at(step)
        self.hooks[0](step)
        self.model.train()
        torch.manual_seed((settings.seed * 1_000_003 + step) * 1009 + self.processes.rank)  # dropout of this step
        total, count = 0.0, 0.0
        micro_tokens = settings.micro_tokens or self.micro_tokens
        pieces = [piece for batch in batches for piece in self.processes.share(batch).pieces(micro_tokens)]
        for number, piece in enumerate(pieces, start=1):
            with self.processes.without_exchange(last=number == len(pieces)):
                loss = self._backward(piece)
            total, count = total + float(loss.total), count + loss.count
        self._update(step, *self.processes.sum(total, count))
        self.hooks[1](step)
        self.optimizer.zero_grad(set_to_none=True)
        return sum(batch.num_tokens for batch in batches)

    def _backward(self, piece: Batch) -> Loss:
        counts: list[float] = []

        def work(model: Any) -> Tensor:
            loss = self.objective(model, piece.to(self.settings.device))
            counts.append(loss.count)
            return loss.total

        with precision.autocast(self.record.precision, self.settings.device):
            total: Tensor = self.run_on(work)
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        return Loss(total.detach(), counts[0])

    def _update(self, step: int, total: float, count: float) -> None:
        grads = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not count or not grads:
            raise PenjingError("a step without anything to learn from", where=f"step {step}", attempt="more targets")
        factor = self.processes.gradient_factor() / count
        norm = self.processes.norm(grads) * factor
        loss = total / count
        try:
            health.check_step(step, loss, norm, self.record.curve)
        except PenjingError:
            self._save()
            raise
        factor *= min(1.0, self.settings.max_grad_norm / max(norm, 1e-12))
        torch._foreach_mul_([local(grad) for grad in grads.values()], factor)
        rate = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        asked = (name for name, p in self.parameters.items() if p.requires_grad)
        self.record.asked = sorted({*self.record.asked, *asked})
        self.record.touched = sorted({*self.record.touched, *grads})
        self.record.curve.append({"step": step + 1, "loss": loss, "norm": norm, "lr": rate})

    def _learning_rate(self, step: int) -> float:
        settings = self.settings
        done = (step + 1) / settings.steps
        if settings.minutes is not None:
            done = max(done, self.record.seconds / (60 * settings.minutes))
        rate = settings.learning_rate
        if settings.by_first_loss and self.record.validation:
            rate *= math.sqrt(max(0.0, self.record.validation[0]["loss"]))
        return optimizers.learning_rate(rate, settings.schedule, settings.warmup, min(1.0, done))

    def _stopped_by(self) -> str:
        record, settings = self.record, self.settings
        if settings.patience and record.validation:
            since = [point for point in record.validation if point["step"] > record.best_step]
            if len(since) >= settings.patience:
                return "patience"
        if settings.minutes is not None and record.seconds >= 60 * settings.minutes:
            return "minutes"
        return "steps" if record.step >= settings.steps else ""

    def _validate_at(self, step: int) -> None:
        if self.validate is None or any(point["step"] == step for point in self.record.validation):
            return
        self.report("validating", self.record.step, self.settings.steps)
        self.model.eval()
        with torch.no_grad(), precision.autocast(self.record.precision, self.settings.device):
            loss = self.run_on(self.validate)
        self.record.validation.append({"step": step, "loss": loss})
        if step and self.record.best_step == step:
            weights = {name: p.data for name, p in self.parameters.items()}
            state.save_tensors(self.best_file, weights, {"step": step, "loss": loss}, write=self.processes.first)
            self.processes.wait()

    def finish(self) -> None:
        """Judge what training did, and leave the best weights in the model."""
        self._validate_at(self.record.step)
        self._save()
        health.check_gradients([name for name in self.record.asked if name not in self.record.touched])
        if self.validate is not None and self.record.best_step != self.record.step:
            state.load_tensors(self.best_file, {name: p.data for name, p in self.parameters.items()})
        after, frozen = state.digest_all(self.parameters.items()), state.digest_all(self._frozen())
        self.unchanged = health.check_changes(
            {name: (before, frozen[name]) for name, before in self.frozen.items()},
            {name: (self.before[name], after[name]) for name in self.parameters},
        )

    def result(self) -> Trained:
        record = self.record
        return Trained(
            steps=record.step,
            tokens=record.tokens,
            seconds=record.seconds,
            curve=record.curve,
            validation=record.validation,
            best_step=record.best_step,
            peak_rss_bytes=peak_rss_bytes(),
            stopped_by=record.stopped_by,
            precision=record.precision,
            unchanged=self.unchanged,
        )

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {f"weight:{name}": p.data for name, p in self.parameters.items()}
        tensors |= {f"keep:{name}": tensor for name, tensor in self.keep.items()}
        for name, parameter in self.parameters.items():
            for kind, value in self.optimizer.state[parameter].items():
                tensors[f"{kind}:{name}"] = torch.as_tensor(value)
        state.save_tensors(self.state_file, tensors, asdict(self.record), write=self.processes.first)
        self.processes.wait()

    def _read_record(self) -> dict[str, Any] | None:
        return state.read_record(self.state_file) if self.state_file.exists() else None

    def _arguments(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        model = state.digest_of(self.before)
        kind = type(self.objective)
        values = vars(self.objective) if hasattr(self.objective, "__dict__") else {}
        simple = {name: value for name, value in values.items() if isinstance(value, int | float | str | bool)}
        settings = {n: v for n, v in asdict(self.settings).items() if n not in ("device", "parallel", "save_every_s")}
        return {
            "data": self.batches.digest,
            "weights at the beginning": model,
            "trained parameters": sorted(self.parameters),
            "objective": [kind.__module__, simple],
            "settings": settings,
        }

    def _frozen(self) -> list[tuple[str, Tensor]]:
        names = [*self.model.named_parameters()]
        return [(name, p) for name, p in names if name not in self.parameters]

    def _tell(self) -> None:
        record, settings = self.record, self.settings
        speed = record.tokens / max(1e-9, record.seconds)
        left = record.seconds / record.step * (settings.steps - record.step)
        if settings.minutes is not None:
            left = min(left, 60 * settings.minutes - record.seconds)
        loss, _ = health.loss_trend([point["loss"] for point in record.curve])
        parts = (f"loss {loss:.3f}", f"{speed:.0f} tokens/s", f"{max(0.0, left) / 60:.1f} min left")
        self.report(" · ".join((*parts, f"{peak_rss_bytes() / 1e9:.2f} GB")), record.step, settings.steps)
