"""Data sets to the documents that training packs: one task a data set, some of each kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from penjing.checkpoint import Checkpoint
from penjing.data.dataset import open_dataset
from penjing.data.encode import Codec, Example, codec
from penjing.data.splits import Part, split
from penjing.errors import PenjingError
from penjing.measure.answers import Answer, answer_of
from penjing.stages.adapt import Examples


def read_examples(
    parent: Checkpoint,
    sources: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    question: str = "{text}",
    max_tokens: int = 512,
    validation: float = 0.1,
    seed: int = 0,
) -> Examples:
    """Every source is a task, called as its file without its ending. Raises PenjingError."""
    reader = codec(parent)
    documents: dict[str, list[Example]] = {}
    held_out: list[Example] = []
    files: list[Path] = []
    kinds: set[str] = set()
    for source in sources:
        dataset = open_dataset(source, columns=dict(columns or {}))
        task = Path(source).stem.replace(".", "_") or "data"
        if task in documents:
            raise PenjingError(f"two tasks are called {task!r}", where="--data", attempt="files of different names")
        parts = split(dataset, validation=validation, held_out=0.0, seed=seed)
        documents[task] = _encoded(reader, parts.train, question, max_tokens)
        held_out += _encoded(reader, parts.validation, question, max_tokens)
        files += dataset.files
        kinds.add(dataset.kind)
    answers: set[Answer] = set()
    if kinds == {"classification"}:
        answers = {answer_of(example) for example in [*chain(*documents.values()), *held_out]}
    return Examples(documents=documents, held_out=held_out, files=files, answers=answers)


def _encoded(reader: Codec, part: Part, question: str, max_tokens: int) -> list[Example]:
    """Of each record; those that have nothing to predict teach nothing."""
    found = []
    for record in part.records():
        for example in reader.examples(record, max_tokens=max_tokens, question=question):
            if example.target_T[1:].any():
                found.append(example)
    return found
