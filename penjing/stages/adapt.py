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
from penjing.evidence import Evidence, Recorder, append, read, recording
from penjing.files import lock, os_error, sync_folder, write_file
from penjing.format.hf_writer import check_free
from penjing.measure.torch_model import load
from penjing.stages import EVIDENCE, Progress
from penjing.stages.child import write_child
from penjing.stages.held_out import judge, validation
from penjing.stages.objectives import AUTO, PREFERENCES, Tasks, objective
from penjing.train import precision, tensorboard
from penjing.train.batch import Batch, Document
from penjing.train.loop import Settings, Trained, train
from penjing.train.objectives import Loss

ADAPTER = "penjing_adapter.json"
_GRADIENT_STEPS = 4
#: matrices and vectors learn at different rates; full training moves every weight and needs the smallest; AdaLoRA's
#: singular values begin at 0 between two small matrices (Banking77, a minute: 5.43 nats to 5.43 at 5e-4, 1.85 at 5e-3,
#: 0.95 at 2e-2)
_RATES = {"full": 2e-5, "attention": 5e-5, "layers": 5e-5, "lisa": 5e-5, "prompt": 3e-2, "prefix": 1e-3}
_VECTOR_RATES = dict.fromkeys(("adalora", "ia3", "norms", "bitfit", "p_tuning_v2"), 5e-3)
_RATE = 5e-4


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train. steps: 0 for as many as `epochs` are. rate: highest learning rate, 0 for the method's usual one.

    A step sees `rows` rows of `length` tokens. minutes: stop by time, 0 for no such limit. evaluations: how often the
    held-out loss is taken; the best weights are kept; patience: so many without a better one end the training.
    objective: dpo, orpo, contrastive, causal_lm, or auto: what the kind of data is for; beta: of dpo, and the weight of
    orpo's odds. tensorboard: write the curves into OUT/tensorboard too.
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
    objective: str = AUTO
    beta: float = 0.1
    tensorboard: bool = False


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What is learned from, by task; `held_out` chooses the best weights and is never trained on.

    `answers`: of classification, all there are, as tokens. `objective`: what it is learned by; `group`: documents that
    belong together, such as a chosen and a rejected answer; they stand side by side.
    """

    documents: Mapping[str, Sequence[Document]]
    held_out: Sequence[Document] = ()
    files: Sequence[Path] = ()
    answers: Collection[tuple[int, ...]] = ()
    objective: str = "causal_lm"
    group: int = 1


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

    out, module = Path(out), technique(method)
    training = dataclasses.replace(training or Training(), objective=examples.objective)
    chosen = build_spec(module.Spec, spec or {}, where=method)
    check_free_adapter(out, force=force)
    if training.tensorboard:
        tensorboard.check(out)
    batches = _tasks(examples, training, seed)
    settings = _settings(method, training, batches, bool(examples.held_out), seed)
    asked = settings_of(method, chosen, training, seed)
    with _working_folder(out) as run:
        with recording("adapt", asked, parent=parent.digest, corpus=batches.digest) as work:
            adapted = module.prepare(
                chosen, load_for(method, parent), _plan(parent, batches, settings.steps, seed, training, examples)
            )
            goal = objective_of(adapted.model, training, examples, lambda: _frozen(method, parent))
            kind = precision.choose(training.precision, "cpu")
            work.before = judge(adapted.model, examples, kind=kind) if examples.objective in PREFERENCES else {}
            trained = train(
                adapted.model,
                with_penalty(goal, adapted.penalty),
                batches,
                settings,
                folder=run,
                validate=validation(examples, goal, training.length),
                progress=progress,
                before_step=adapted.before_step,
                after_step=adapted.after_step,
                keep=adapted.buffers,
            )
            work.after = judge(adapted.model, examples, kind=kind) | count_trained(adapted.model)
            if adapted.finish is not None:
                adapted.finish()
            _note_losses(work, trained)
            if not adapted.adapter:
                write_child(parent, adapted.model, out, step=asked, work=work, force=force)
        evidence = work.finished()
        if adapted.adapter:
            _write_adapter(parent, adapted.model, out, evidence, force=force)
        else:
            append(out / EVIDENCE, evidence)
        if training.tensorboard:
            tensorboard.write_curves(out / "tensorboard", trained.curve, trained.validation)
    shutil.rmtree(run, ignore_errors=True)
    return evidence


def _note_losses(work: Recorder, trained: Trained) -> None:
    """Held-out loss before and of the weights that were kept; without held-out data of the first and the last step."""
    best = [point["loss"] for point in trained.validation if point["step"] == trained.best_step]
    work.before["loss"] = (trained.validation or trained.curve)[0]["loss"]
    work.after |= {"loss": best[0] if best else trained.curve[-1]["loss"], "training": trained.to_json()}


def objective_of(model: Any, training: Training, examples: Examples, load_base: Callable[[], Any]) -> Any:
    """What training makes smaller. Where a model cannot do without its adapter for a moment, its base is loaded too."""
    reference = None
    if examples.objective == "dpo" and not hasattr(model, "disable_adapter"):
        reference = load_base()
    return objective(examples.objective, beta=training.beta, group=examples.group, reference=reference)


def _frozen(method: str, parent: Checkpoint) -> Any:
    return load_for(method, parent).eval().requires_grad_(False)


def settings_of(method: str, spec: Any, training: Training, seed: int) -> dict[str, Any]:
    """As evidence has them."""
    return {"method": method, "spec": dataclasses.asdict(spec), "train": dataclasses.asdict(training), "seed": seed}


def done_before(
    parent: Checkpoint, out: Path, examples: Examples, *, method: str, spec: Any, training: Training, seed: int
) -> dict[str, Any] | None:
    """The record of OUT, if it is what `adapt` would write."""
    training = dataclasses.replace(training, objective=examples.objective)
    records = [record for record in read(out / EVIDENCE) if record["stage"] == "adapt"]
    wanted = {"settings": settings_of(method, spec, training, seed), "parent": parent.digest}
    wanted["corpus"] = _tasks(examples, training, seed).digest
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


def _tasks(examples: Examples, training: Training, seed: int) -> Tasks:
    how = {"rows": training.rows, "length": training.length, "seed": seed, "files": examples.files}
    return Tasks(examples.documents, group=examples.group, alone=examples.objective != "contrastive", **how)


def _plan(parent: Checkpoint, batches: Tasks, steps: int, seed: int, training: Training, examples: Examples) -> Plan:
    def gradient(model: Any) -> None:
        # it is its own reference as long as it is as it was
        goal = objective_of(model, training, examples, lambda: model)
        for step in range(_GRADIENT_STEPS):
            for batch in batches.at(step):
                goal(model, batch).total.backward()

    return Plan(modules=modules_of(parent), steps=steps, seed=seed, gradient=gradient, tasks=batches.names)


def _settings(method: str, training: Training, batches: Tasks, validated: bool, seed: int) -> Settings:
    steps = training.steps or max(1, round(training.epochs * batches.steps_per_epoch))
    return Settings(
        steps=steps,
        minutes=training.minutes or None,
        learning_rate=training.rate or _rate(method, training.objective),
        schedule=training.schedule,  # type: ignore[arg-type]  # checked by the loop
        weight_decay=training.weight_decay,
        precision=training.precision,
        optimizer=training.optimizer,
        evaluate_every=max(1, steps // max(1, training.evaluations)) if validated else 0,
        patience=training.patience,
        seed=seed,
        save_every_s=30.0,
    )


def _rate(method: str, objective: str) -> float:
    """Preferences are learned an order of magnitude slower than texts, as in their papers."""
    return (_RATES | _VECTOR_RATES).get(method, _RATE) * (0.1 if objective in PREFERENCES else 1.0)


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
