"""Data sets to the documents that training packs: one task a data set, some of each kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from penjing.checkpoint import Checkpoint
from penjing.data.dataset import open_dataset
from penjing.data.encode import Codec, Example, codec, pair, preference
from penjing.data.records import Record
from penjing.data.splits import split
from penjing.data.spool import Spool
from penjing.errors import PenjingError
from penjing.measure.answers import Answer, answer_of
from penjing.stages.adapt import Examples
from penjing.stages.objectives import AUTO, PREFERENCES, choose


def read_examples(
    parent: Checkpoint,
    sources: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    question: str = "{text}",
    max_tokens: int = 512,
    validation: float = 0.1,
    objective: str = AUTO,
    seed: int = 0,
) -> Examples:
    """Every source is a task, called as its file without its ending. Data may be larger than memory: examples are kept
    on the disk. Raises PenjingError.

    Preferences become pairs of documents, chosen and rejected, and so do pairs, or three where there are negatives,
    unless `objective` is causal_lm, which learns the chosen answers.
    """
    reader = codec(parent)
    documents: dict[str, Spool] = {}
    held_out = Spool()
    files: list[Path] = []
    kinds: set[str] = set()
    objectives: set[str] = set()
    groups: set[int] = set()
    for source in sources:
        dataset = open_dataset(source, columns=dict(columns or {}))
        task = Path(source).stem.replace(".", "_") or "data"
        if task in documents:
            raise PenjingError(f"two tasks are called {task!r}", where="--data", attempt="files of different names")
        chosen = choose(dataset.kind, objective, source)
        parts = split(dataset, validation=validation, held_out=0.0, seed=seed)
        documents[task] = Spool()
        for part, spool in ((parts.train, documents[task]), (parts.validation, held_out)):
            for record in part.records():
                for group in _groups(reader, record, objective=chosen, question=question, max_tokens=max_tokens):
                    spool.extend(group)
                    groups.add(len(group))
        objectives.add(chosen)
        files += dataset.files
        kinds.add(dataset.kind)
    if len(objectives) > 1 or len(groups) > 1:
        said = " and ".join(sorted(objectives)) if len(objectives) > 1 else "pairs with and without a negative"
        raise PenjingError(f"{said} in one training", where="--data", attempt="data of one kind")
    answers: set[Answer] = set()
    if kinds == {"classification"}:
        answers = {answer_of(example) for example in chain(*documents.values(), held_out)}
    return Examples(
        documents=documents,
        held_out=held_out,
        files=files,
        answers=answers,
        objective=objectives.pop(),
        group=groups.pop() if groups else 1,
    )


def _groups(
    reader: Codec, record: Record, *, objective: str, question: str, max_tokens: int
) -> list[tuple[Example, ...]]:
    """Documents of a record, those together that belong together; what has nothing to predict teaches nothing."""
    if objective == "contrastive":
        return [pair(record, reader.tokenizer, max_tokens=max_tokens)]
    found: list[tuple[Example, ...]]
    if objective in PREFERENCES:
        found = [preference(record, reader.tokenizer, reader.template, max_tokens=max_tokens, eos=reader.eos)]
    else:
        found = [(example,) for example in reader.examples(record, max_tokens=max_tokens, question=question)]
    return [group for group in found if all(example.target_T[1:].any() for example in group)]
