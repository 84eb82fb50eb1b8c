"""Pretrain: a text becomes a tokenizer and a small model, from scratch.

A decoder learns to continue the text; an encoder to fill in what is masked and to tell what follows. Validation text
chooses the best weights, held-out text judges them: neither is trained on, nor does the tokenizer see them.

Shapes: N tokens of a stream.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from penjing.data import new_tokenizer
from penjing.data.dataset import Dataset
from penjing.data.splits import Part, split, whole
from penjing.errors import PenjingError
from penjing.evidence import Evidence, recording
from penjing.files import write_file
from penjing.format.hf_writer import check_free, tokenizer_config
from penjing.measure.characters import bits_per_character
from penjing.stages import EVIDENCE, Progress
from penjing.train import fresh
from penjing.train.batch import Batches
from penjing.train.loop import Settings, Trained, held_out_loss, train
from penjing.train.objectives import causal_lm, mlm_nsp
from penjing.train.sentences import SentencePairs
from penjing.train.stream import StreamBatches


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What model, and how it is trained. `rows` windows of `context` tokens a step."""

    family: str = "llama"
    num_parameters: int = 1_000_000
    vocab_size: int = 1024
    context: int = 256
    rows: int = 8
    steps: int = 1500
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.0
    minutes: float | None = None
    precision: str = "auto"
    validations: int = 10
    seed: int = 0


def pretrain(
    dataset: Dataset,
    out: Path,
    plan: Plan,
    *,
    held_out: Dataset | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Evidence:
    """Write a new model to `out`, with its tokenizer. A run that was killed goes on from `OUT.run`.

    It is judged by `held_out`, or else by a tenth of the data. Raises PenjingError.
    """
    check_free(out, force=force)
    for data in filter(None, (dataset, held_out)):
        if data.kind != "text":
            raise PenjingError(f"this is {data.kind} data", where=str(data.files[0]), attempt="text, or --kind text")
    parts = split(dataset, validation=0.05, held_out=0.0 if held_out else 0.1, seed=plan.seed)
    judged_by = whole(held_out) if held_out else parts.held_out
    folder = out.with_name(f"{out.name}.run")
    folder.mkdir(parents=True, exist_ok=True)
    report = progress or (lambda what, done, of: None)
    settings = dataclasses.asdict(plan)
    with recording("pretrain", settings, path=folder / EVIDENCE, corpus=dataset.digest) as work:
        report("tokenizer", 0, 0)
        encoder = plan.family in fresh.ENCODERS
        tokenizer = new_tokenizer.learn(_texts(parts.train), plan.vocab_size, encoder=encoder)
        model = fresh.new_model(_config(plan, tokenizer), plan.seed)
        make = _encoder if encoder else _decoder
        batches, objective, validate, judge = make(plan, tokenizer, parts.train, parts.validation)
        trained = train(model, objective, batches, _settings(plan), folder=folder, validate=validate, progress=progress)
        dataset.check_unchanged()
        work.after = judge(model, _texts(judged_by), report) | _told(model, trained)
        _write(model, tokenizer, out, force=force)
    write_file(out / EVIDENCE, (folder / EVIDENCE).read_bytes())
    shutil.rmtree(folder)
    return work.finished()


Judge = Callable[[Any, Sequence[str], Progress], dict[str, Any]]
Task = tuple[Batches, Any, Callable[[Any], float], Judge]


def _decoder(plan: Plan, tokenizer: Tokenizer, training: Part, validation: Part) -> Task:
    bos = _id(tokenizer, new_tokenizer.END)
    stream = [[bos, *encoding.ids] for encoding in tokenizer.encode_batch(_texts(training))]
    token_N = np.concatenate([np.array(ids, np.int32) for ids in stream])
    texts = _texts(validation)

    def judge(model: Any, held_out: Sequence[str], report: Progress) -> dict[str, Any]:
        options: dict[str, Any] = {"bos": bos, "length": plan.context, "progress": report}
        bits = bits_per_character(model, tokenizer, held_out, **options)
        return {"bits_per_character": bits, "characters": sum(map(len, held_out))}

    def validate(model: Any) -> float:
        return bits_per_character(model, tokenizer, texts, bos=bos, length=plan.context)

    batches = StreamBatches(token_N, rows=plan.rows, length=plan.context, seed=plan.seed)
    return batches, causal_lm.Objective(), validate, judge


def _encoder(plan: Plan, tokenizer: Tokenizer, training: Part, validation: Part) -> Task:
    """Held-out loss is of fixed batches, whose masks depend on their tokens alone."""
    options: dict[str, Any] = {"rows": plan.rows, "length": plan.context, "seed": plan.seed}
    mask, separator = (_id(tokenizer, name) for name in (new_tokenizer.MASK, new_tokenizer.SEP))
    objective = mlm_nsp.Objective(mask=mask, separator=separator, num_special=4)

    def fixed(texts: Sequence[str], steps: int) -> list[Any]:
        pairs = SentencePairs(texts, tokenizer, **options)
        return [batch for step in range(steps) for batch in pairs.at(step)]

    def judge(model: Any, held_out: Sequence[str], report: Progress) -> dict[str, Any]:
        report("held-out text", 0, 0)
        return mlm_nsp.accuracies(objective, model, fixed(held_out, 16))

    validate = held_out_loss(objective, fixed(_texts(validation), 8))
    return SentencePairs(_texts(training), tokenizer, **options), objective, validate, judge


def _config(plan: Plan, tokenizer: Tokenizer) -> Any:
    shape = fresh.shape(plan.family, plan.num_parameters, plan.vocab_size)
    end = tokenizer.token_to_id(new_tokenizer.END)
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": tokenizer.token_to_id(new_tokenizer.PAD)}
    config = fresh.config(plan.family, shape, plan.vocab_size, plan.context, **tokens)
    for name in ("attention_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob", "hidden_dropout"):
        if hasattr(config, name):
            setattr(config, name, plan.dropout)
    return config


def _settings(plan: Plan) -> Settings:
    return Settings(
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        precision=plan.precision,
        minutes=plan.minutes,
        seed=plan.seed,
        evaluate_every=max(1, plan.steps // plan.validations),
        micro_tokens=plan.rows * plan.context,
    )


def _id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    assert found is not None  # it was learnt with it
    return found


def _texts(part: Part) -> list[str]:
    return [record.text for record in part.records()]


def _told(model: Any, trained: Trained) -> dict[str, Any]:
    found = {name: getattr(trained, name) for name in ("steps", "tokens", "seconds", "best_step", "stopped_by")}
    found |= {"precision": trained.precision, "validation": trained.validation, "parameters": model.num_parameters()}
    return found | {"curve": trained.curve[:: max(1, len(trained.curve) // 200)]}


def _write(model: Any, tokenizer: Tokenizer, out: Path, *, force: bool) -> None:
    """The folder under another name, then renamed: whole or not there."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("attention_dropout", "hidden_dropout"):  # of training, not of what ships
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    model.save_pretrained(partial)
    text = tokenizer.to_str()
    made = tokenizer_config(text, model.config.to_dict(), None)
    tokenizer.save(str(partial / "tokenizer.json"))
    if tokenizer.token_to_id(new_tokenizer.MASK) is not None:
        made |= {"mask_token": new_tokenizer.MASK, "cls_token": new_tokenizer.CLS, "sep_token": new_tokenizer.SEP}
    write_file(partial / "tokenizer_config.json", json.dumps(made, indent=2, ensure_ascii=False).encode())
    check_free(out, force=force)
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
