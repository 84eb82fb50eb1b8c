"""Tune: a quantized child learns to predict what its float parent predicts, and becomes a new quantized child.

Training is kept in `OUT.tuning/`: killed at any moment and run again, it goes on there. With a number of steps the same
run gives the same bytes; with minutes, which this machine may fill with more steps or fewer, it does not.

Shapes: W windows, T tokens a window.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.data.text import Corpus, Windows, check_disjoint, load_tokenizer, split, windows
from penjing.errors import PenjingError
from penjing.evidence import Evidence, recording
from penjing.files import os_error, write_file
from penjing.format.families import Part
from penjing.format.hf_writer import CheckpointWriter, Shard, ShardWriter
from penjing.format.source import row_indices
from penjing.quant import Tuning, tuning
from penjing.stages import EVIDENCE, Progress, base, build_spec, inherit_evidence
from penjing.stages.calibration_text import text_to_learn
from penjing.stages.codes import bits_per_weight, copy_rest, packed, plan, runs
from penjing.stages.foresight import UNLIMITED, Budget, tuning_memory
from penjing.stages.student import Student, student, teacher
from penjing.tensors.groups import Quantized
from penjing.train import precision
from penjing.train.batch import PackedBatches, document, pack
from penjing.train.loop import Settings, Trained, held_out_loss, train
from penjing.train.objectives.distill import Objective
from penjing.train.optimizers import Schedule

#: no run gets so far: what ends it is its minutes
_MANY_STEPS = 1_000_000
_SAVE_EVERY_S = 300.0  # a state of SmolLM2's latents with Adam's moments is 1.6 GB
_STEP = "step.json"
_OWN_TOKENS = 1 << 18  # that the parent writes, where there is no other text
_APART = 0.05  # fraction of the text that is kept apart
_CURVE_POINTS = 24  # of the curve that the evidence keeps: it travels in the packed file's header


@dataclass(frozen=True, kw_only=True)
class Training:
    """window: tokens of a document. tokens: of a step. micro_tokens: that go through the model at a time.

    hard: share of the text's own loss beside the teacher's KL. validation: windows kept apart, to choose the best step
    by, whose KL alone counts. evaluate_every: steps between. steps: instead of minutes. precision: auto, bf16 or f32.
    """

    window: int = 256
    tokens: int = 512
    micro_tokens: int = 1024
    hard: float = 0.0
    validation: int = 8
    evaluate_every: int = 100
    steps: int = 0
    warmup: float = 0.05
    schedule: str = "cosine"
    precision: str = "auto"


def tune(
    child: Checkpoint,
    out: Path,
    *,
    parent: Checkpoint,
    data: str | Path | Corpus,
    method: str = "qat",
    spec: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    force: bool = False,
    seed: int = 0,
    budget: Budget = UNLIMITED,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Evidence:
    """Write a tuned child beside the untouched `child`, whose codes were made of `parent`.

    `spec`: settings of the method and of `Training`. A learning rate that is not given is the method's times the root
    of the child's KL to its parent, which goes with their distance (docs/quantization.md). `minutes`: of training,
    unless `steps` are set. `data`: text to learn from, or "self": what the parent writes, once nothing else is wrong.
    A part of it is kept apart to choose the best step by; where none is better than the start, the child stays as it
    was. `tell` hears what memory is expected; more than `budget` allows is an error before the work. Raises
    PenjingError.
    """
    technique = tuning(method)
    settings, training = _settings(technique, method, spec or {})
    if not training.steps and minutes is None:
        raise PenjingError("nothing says how long to train", where="tune", attempt="--minutes 15, or --set steps=200")
    _check(child, parent)
    needed = _foreseen(child, technique, training, budget, tell)
    text = text_to_learn(parent, data, num_tokens=_OWN_TOKENS, seed=seed, progress=progress)
    learnt, apart = _texts(parent, text, training, seed)
    said = {"method": method, "spec": dict(spec or {}), "minutes": minutes, "seed": seed, "teacher": parent.digest}
    step = {"stage": "tune", "parent": child.digest, "settings": said, "corpus": learnt.digest}
    shards = plan(child, child.quantized)
    with CheckpointWriter(out, shards, step=step, force=force) as writer:
        inherit_evidence(child, writer.folder)
        folder = _folder(out, step)
        with recording("tune", said, path=writer.folder / EVIDENCE, parent=child.digest, corpus=learnt.digest) as work:
            work.predicted = {"peak_rss_bytes": needed}
            made = _student(child, parent, technique, settings)
            by_kl = "learning_rate" not in (spec or {})
            loop = _loop_settings(training, settings.learning_rate, by_kl, minutes, seed)
            trained = _train(made, parent, training, loop, (learnt, apart), folder, progress)
            best = min(trained.validation, key=lambda point: point["loss"])
            if not best["step"]:  # nothing better came
                del made
                made = _student(child, parent, technique, settings)
            _write_shards(child, made, shards, writer)
            writer.write_texts(
                config=child.config,
                generation=child.generation,
                tokenizer_json=child.tokenizer_json,
                chat_template=child.chat_template,
                companions=child.path if child.path.is_dir() else None,
                base=base(child),
            )
            work.before = {"kl_to_parent": trained.validation[0]["loss"]}
            work.after = _told(trained, best) | {"bits_per_weight": bits_per_weight(child, child.quantized)}
            work.child = open_checkpoint(writer.folder).digest
        writer.finish()
    shutil.rmtree(folder, ignore_errors=True)
    return work.finished()


def _folder(out: Path, step: Mapping[str, Any]) -> Path:
    """Where training is kept: what another step has left there is removed."""
    folder, wanted = out.with_name(f"{out.name}.tuning"), json.dumps(step, sort_keys=True).encode()
    try:
        if folder.exists() and (not (folder / _STEP).is_file() or (folder / _STEP).read_bytes() != wanted):
            shutil.rmtree(folder)
        if not folder.exists():
            folder.mkdir()
            write_file(folder / _STEP, wanted)
    except OSError as error:
        raise os_error(error, folder) from error
    return folder


def _settings(technique: Tuning, method: str, spec: Mapping[str, Any]) -> tuple[Any, Training]:
    """The method's settings and those of training, which may come in one."""
    of_training = {field.name for field in dataclasses.fields(Training)}
    own = {name: value for name, value in spec.items() if name not in of_training}
    shared = {name: value for name, value in spec.items() if name in of_training}
    return build_spec(technique.Spec, own, where=method), build_spec(Training, shared, where="training")


def _foreseen(
    child: Checkpoint, technique: Tuning, training: Training, budget: Budget, tell: Callable[[str], None] | None
) -> int:
    """Bytes of memory that it will take. PenjingError where that is more, or the minutes are, than are allowed."""
    chosen = precision.choose(training.precision, "cpu")
    layouts = child.quantized.values()
    needed = tuning_memory(child.architecture, layouts, technique, tokens=training.micro_tokens, precision=chosen)
    smaller = max(training.window, training.micro_tokens // 4)
    budget.check_memory(needed, where=child.name, attempt=f"--set micro_tokens={smaller}, or --method kl_tuning")
    if tell is not None:
        tell(f"tuning will take {sum(needed.values()) / 1e6:,.0f} MB of memory at most")
    return sum(needed.values())


def _check(child: Checkpoint, parent: Checkpoint) -> None:
    """Raise PenjingError unless `child` is `parent` with codes."""
    if not child.quantized or child.path.is_file():
        raise PenjingError(
            "only a folder that `penjing quantize` wrote can be tuned",
            where=str(child.path),
            attempt="penjing quantize, then tune what it wrote",
        )
    if parent.architecture.matrix_shapes() != child.architecture.matrix_shapes():
        raise PenjingError(
            f"{parent.name} is not the model that {child.name} was made of",
            where="--teacher",
            attempt="the model that was quantized",
        )


def _texts(parent: Checkpoint, data: Corpus, training: Training, seed: int) -> tuple[Windows, Windows]:
    """Windows to learn from, and windows to choose the best step by, which share no text."""
    if parent.tokenizer_json is None:
        raise PenjingError(
            "no tokenizer, so there is no text to learn from",
            where=parent.name,
            attempt="put the model's tokenizer.json beside its config.json",
        )
    tokenizer = load_tokenizer(parent.tokenizer_json, where=parent.name)
    bos, length = parent.architecture.bos_token_id, training.window
    learnt, apart = split(data, held_out=_APART, seed=seed)
    found = windows(tokenizer, learnt, length=length, bos_token_id=bos)
    kept = windows(tokenizer, apart, length=length, max_windows=training.validation, bos_token_id=bos)
    check_disjoint(found, kept)
    return found, kept


def _student(child: Checkpoint, parent: Checkpoint, technique: Tuning, settings: Any) -> Student:
    def tunable(quantized: Quantized, weight_OI: Tensor) -> nn.Module:
        return cast(nn.Module, technique.tunable(settings, quantized, weight_OI))

    return student(child, parent, tunable, vector_rate=technique.vector_rate(settings))


def _loop_settings(training: Training, learning_rate: float, by_kl: bool, minutes: float | None, seed: int) -> Settings:
    return Settings(
        steps=training.steps or _MANY_STEPS,
        minutes=None if training.steps else minutes,
        learning_rate=learning_rate,
        by_first_loss=by_kl,
        warmup=training.warmup,
        schedule=cast(Schedule, training.schedule),
        seed=seed,
        precision=training.precision,
        micro_tokens=training.micro_tokens,
        evaluate_every=training.evaluate_every,
        save_every_s=_SAVE_EVERY_S,
    )


def _train(
    made: Student,
    parent: Checkpoint,
    training: Training,
    settings: Settings,
    texts: tuple[Windows, Windows],
    folder: Path,
    progress: Progress | None,
) -> Trained:
    learnt, apart = ([document(token_T) for token_T in part.tokens_WT] for part in texts)
    chosen = precision.choose(training.precision, "cpu")
    objective = Objective(teacher=teacher(parent, chosen), hard=training.hard)
    rows = max(1, training.tokens // training.window)
    return train(
        made.model,
        objective,
        PackedBatches(learnt, rows=rows, length=training.window, seed=settings.seed),
        settings,
        folder=folder,
        validate=held_out_loss(dataclasses.replace(objective, hard=0.0), [pack([entry]) for entry in apart]),
        before_step=made.before_step,
        progress=progress,
    )


def _write_shards(child: Checkpoint, made: Student, shards: Sequence[Shard], writer: CheckpointWriter) -> None:
    """Codes and floats of what was trained; everything else as the child had it."""
    parts: dict[str, list[Part]] = defaultdict(list)
    for part in child.parts():
        if part.name in made.matrices:
            parts[part.source].append(part)
    for index in writer.pending():
        with writer.shard(index) as shard:
            for name in shards[index].tensors:
                if name in made.vectors:
                    shard.write(name, made.vectors[name]().detach().numpy())
                    continue
                written = [
                    _write_matrix(child, part, made.matrices[part.name].quantized(), shard)
                    for part in parts.get(name, [])
                ]
                copy_rest(child, name, written, shard)


def _write_matrix(child: Checkpoint, part: Part, quantized: Quantized, shard: ShardWriter) -> NDArray[np.intp]:
    """Codes of a matrix, and the floats that they stand for in their rows of the source tensor: these rows."""
    index = row_indices(part.rows, child.tensors[part.source].shape[0])
    shard.write_codes(part.name, packed(quantized, child.quantized[part.name], part.name))
    shipped_OI = quantized.dequantize().numpy()
    for begin, end in runs(index):
        shard.write(part.source, shipped_OI[begin:end], int(index[begin]))
    return index


def _told(trained: Trained, best: Mapping[str, float]) -> dict[str, Any]:
    """What evidence keeps of training."""
    every = max(1, len(trained.curve) // _CURVE_POINTS)
    curve = [[point["step"], round(point["loss"], 4)] for point in trained.curve[::every]]
    return {
        "kl_to_parent": best["loss"],
        "steps": trained.steps,
        "best_step": int(best["step"]),
        "tokens": trained.tokens,
        "training_seconds": trained.seconds,
        "precision": trained.precision,
        "curve": curve,
        "validation": [[point["step"], round(point["loss"], 4)] for point in trained.validation],
    }
