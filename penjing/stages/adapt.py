"""Adapt: a parent learns from examples. The child is an adapter in peft's format, or a checkpoint where a method
changes the weights themselves.

Training goes on in `OUT.run` and can be killed at any moment; the same call goes on and ends with the same bytes. OUT
appears when it is whole, with evidence, and only if what should have changed did and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from penjing.adapt import Plan, technique
from penjing.checkpoint import Checkpoint
from penjing.errors import PenjingError
from penjing.evidence import Evidence, append, read, recording
from penjing.files import lock, os_error, sync_folder, write_file
from penjing.format.hf_writer import check_free
from penjing.measure.torch_model import load
from penjing.stages import EVIDENCE, Progress
from penjing.stages.child import write_child
from penjing.stages.held_out import judge, validation
from penjing.train.batch import Batch, Batches, Document, PackedBatches
from penjing.train.loop import Settings, train
from penjing.train.objectives import Loss, causal_lm

ADAPTER = "penjing_adapter.json"
_GRADIENT_STEPS = 4
#: matrices and vectors learn at different rates; full training moves every weight and needs the smallest
_RATES = {"full": 2e-5, "attention": 5e-5, "layers": 5e-5, "lisa": 5e-5, "prompt": 3e-2, "prefix": 1e-3}
_VECTOR_RATES = dict.fromkeys(("ia3", "norms", "bitfit", "p_tuning_v2"), 5e-3)
_RATE = 5e-4


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train. steps: 0 for as many as `epochs` are. rate: highest learning rate, 0 for the method's usual one.

    A step sees `rows` rows of `length` tokens. minutes: stop by time, 0 for no such limit. evaluations: how often the
    held-out loss is taken; the best weights are kept; patience: so many without a better one end the training.
    """

    epochs: float = 3.0
    steps: int = 0
    minutes: float = 0.0
    rate: float = 0.0
    rows: int = 2
    length: int = 512
    evaluations: int = 8
    patience: int = 0
    schedule: str = "cosine"
    weight_decay: float = 0.0
    precision: str = "auto"
    optimizer: str = "adamw"


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What is learned from, by task; `held_out` chooses the best weights and is never trained on.

    `answers`: of classification, all there are, as tokens.
    """

    documents: Mapping[str, Sequence[Document]]
    held_out: Sequence[Document] = ()
    files: Sequence[Path] = ()
    answers: Collection[tuple[int, ...]] = ()


def adapt(
    parent: Checkpoint,
    out: Path,
    examples: Examples,
    *,
    method: str = "lora",
    spec: Mapping[str, Any] | None = None,
    training: Training | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Evidence:
    """Write an adapter or an adapted child beside an untouched parent. Raises PenjingError."""
    from penjing.stages import build_spec

    out, training, module = Path(out), training or Training(), technique(method)
    chosen = build_spec(module.Spec, spec or {}, where=method)
    check_free_adapter(out, force=force)
    batches = _Tasks(examples, training, seed)
    settings = _settings(method, training, batches, bool(examples.held_out), seed)
    asked = settings_of(method, chosen, training, seed)
    with _working_folder(out) as run:
        with recording("adapt", asked, parent=parent.digest, corpus=batches.digest) as work:
            adapted = module.prepare(chosen, load_for(method, parent), _plan(parent, batches, settings.steps, seed))
            trained = train(
                adapted.model,
                with_penalty(causal_lm.Objective(), adapted.penalty),
                batches,
                settings,
                folder=run,
                validate=validation(examples.held_out, training.length),
                progress=progress,
                before_step=adapted.before_step,
                after_step=adapted.after_step,
                keep=adapted.buffers,
            )
            counts = count_trained(adapted.model)
            judged = judge(adapted.model, examples.held_out, examples.answers, kind=trained.precision)
            if adapted.finish is not None:
                adapted.finish()
            work.before = {"loss": (trained.validation or trained.curve)[0]["loss"]}
            best = [point["loss"] for point in trained.validation if point["step"] == trained.best_step]
            work.after = {"loss": best[0] if best else trained.curve[-1]["loss"], **judged, **counts}
            work.after["training"] = trained.to_json()
            if not adapted.adapter:
                write_child(parent, adapted.model, out, step=asked, work=work, force=force)
        evidence = work.finished()
        if adapted.adapter:
            _write_adapter(parent, adapted.model, out, evidence, force=force)
        else:
            append(out / EVIDENCE, evidence)
    shutil.rmtree(run, ignore_errors=True)
    return evidence


def settings_of(method: str, spec: Any, training: Training, seed: int) -> dict[str, Any]:
    """As evidence has them."""
    return {"method": method, "spec": dataclasses.asdict(spec), "train": dataclasses.asdict(training), "seed": seed}


def done_before(
    parent: Checkpoint, out: Path, examples: Examples, *, method: str, spec: Any, training: Training, seed: int
) -> dict[str, Any] | None:
    """The record of OUT, if it is what `adapt` would write."""
    records = [record for record in read(out / EVIDENCE) if record["stage"] == "adapt"]
    wanted = {"settings": settings_of(method, spec, training, seed), "parent": parent.digest}
    wanted["corpus"] = _Tasks(examples, training, seed).digest
    return records[-1] if records and {name: records[-1][name] for name in wanted} == wanted else None


def modules_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Canonical names of matrices and norms to the modules that transformers keeps them in."""
    return {
        part.name: part.source.removesuffix(".weight") for part in checkpoint.parts() if part.source.endswith(".weight")
    }


def with_penalty(objective: Any, penalty: Callable[[], Tensor] | None) -> Any:
    """An objective whose mean has `penalty` added."""
    return objective if penalty is None else _Penalized(objective, penalty)


@dataclass(frozen=True)
class _Penalized:
    objective: Any
    penalty: Callable[[], Tensor]

    def __call__(self, model: Any, batch: Batch) -> Loss:
        found: Loss = self.objective(model, batch)
        return Loss(found.total + found.count * self.penalty(), found.count)


def count_trained(model: Any) -> dict[str, int]:
    """Parameters that are trained, and all there are."""
    parameters = list(model.parameters())
    return {
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "parameters": sum(p.numel() for p in parameters),
    }


def load_for(method: str, parent: Checkpoint) -> Any:
    """The parent as the method wants it: qlora's stays in codes."""
    if method == "qlora":
        from penjing.stages.small_base import load_small

        return load_small(parent)
    if parent.path.suffix == ".penjing":
        raise PenjingError("a packed model is not trained", where=parent.name, attempt="what it was packed from")
    return load(parent)


class _Tasks:
    """Batches of one task, or of several in turns: step s is of task s mod their number."""

    def __init__(self, examples: Examples, training: Training, seed: int) -> None:
        self.names = tuple(examples.documents)
        self.of_task = [
            PackedBatches(documents, rows=training.rows, length=training.length, seed=seed, files=examples.files)
            for documents in examples.documents.values()
        ]
        if not self.of_task:
            raise PenjingError("no examples to learn from", where="--data", attempt="data with at least one example")

    @property
    def digest(self) -> str:
        return "+".join(batches.digest for batches in self.of_task)

    @property
    def steps_per_epoch(self) -> float:
        return sum(batches.steps_per_epoch for batches in self.of_task)

    def at(self, step: int) -> list[Batch]:
        return self.of_task[step % len(self.of_task)].at(step // len(self.of_task))


def _plan(parent: Checkpoint, batches: Batches, steps: int, seed: int) -> Plan:
    def gradient(model: Any) -> None:
        for step in range(_GRADIENT_STEPS):
            for batch in batches.at(step):
                causal_lm.Objective()(model, batch).total.backward()  # type: ignore[no-untyped-call]

    tasks = getattr(batches, "names", ())
    return Plan(modules=modules_of(parent), steps=steps, seed=seed, gradient=gradient, tasks=tasks)


def _settings(method: str, training: Training, batches: _Tasks, validated: bool, seed: int) -> Settings:
    steps = training.steps or max(1, round(training.epochs * batches.steps_per_epoch))
    return Settings(
        steps=steps,
        minutes=training.minutes or None,
        learning_rate=training.rate or (_RATES | _VECTOR_RATES).get(method, _RATE),
        schedule=training.schedule,  # type: ignore[arg-type]  # checked by the loop
        weight_decay=training.weight_decay,
        precision=training.precision,
        optimizer=training.optimizer,
        evaluate_every=max(1, steps // max(1, training.evaluations)) if validated else 0,
        patience=training.patience,
        seed=seed,
        save_every_s=30.0,
    )


def check_free_adapter(out: Path, *, force: bool) -> None:
    """As for checkpoints; an adapter may be replaced too."""
    if force and (out / "adapter_config.json").is_file():
        return
    check_free(out, force=force)


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """`OUT.run`, for one process at a time."""
    run = out.with_name(f"{out.name}.run")
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise os_error(error, run) from error
    try:
        lock(descriptor, run)
        yield run
    finally:
        os.close(descriptor)


def _write_adapter(parent: Checkpoint, model: Any, out: Path, evidence: Evidence, *, force: bool) -> None:
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        about = {"format": "penjing-peft", "version": 1, "parent": parent.digest, "name": parent.name}
        write_file(partial / ADAPTER, (json.dumps(about, indent=1) + "\n").encode())
        append(partial / EVIDENCE, evidence)
        sync_folder(partial)
        replace_folder(partial, out, force=force)
    except OSError as error:
        raise os_error(error, out) from error


def replace_folder(partial: Path, out: Path, *, force: bool) -> None:
    """`partial` gets the name `out`; an adapter that is there is replaced under `force`."""
    check_free_adapter(out, force=force)
    old = out.with_name(f".{out.name}.replaced")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(out, old)
    os.rename(partial, out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)
