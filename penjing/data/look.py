"""What is in a data set, before anything is trained on it.

Shapes: N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np

from penjing.data.dataset import Dataset
from penjing.data.encode import Codec, Example
from penjing.data.languages import languages
from penjing.data.near_duplicates import THRESHOLD, near_duplicates
from penjing.data.personal import personal_data
from penjing.data.splits import Part, split, whole
from penjing.errors import PenjingError

#: records of which languages and personal data are told, evenly spaced
SAMPLE: Final = 2000
Progress = Callable[[str, int, int], None]


def sample(dataset: Dataset, most: int = SAMPLE) -> list[int]:
    count = min(most, len(dataset))
    return [at * len(dataset) // count for at in range(count)]


def look(
    dataset: Dataset,
    codec: Codec | None = None,
    *,
    held_out: Dataset | None = None,
    max_tokens: int = 512,
    question: str = "{text}",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Counts, problems, labels, lengths, examples, repeats, languages, personal data, as JSON keeps them.

    What needs a library that is not here says which: {"needs": …}.
    """
    report = progress or (lambda what, done, of: None)
    found: dict[str, Any] = {
        "kind": dataset.kind,
        "columns": {role: list(names) for role, names in dataset.columns.items()},
        "files": [str(file) for file in dataset.files],
        "digest": dataset.digest,
        "records": len(dataset),
    }
    if dataset.kind == "classification":
        found["labels"] = _label_counts(dataset)
    found["lengths"] = _lengths(dataset, codec, max_tokens, question, report)
    if codec is not None:
        found["examples"] = [_shown(dataset, codec, index, max_tokens, question) for index in sample(dataset, 3)]
    report("near-duplicates", 0, len(dataset))
    found["near_duplicates"] = _or_needs(lambda: _near(dataset, held_out, seed, report))
    chosen = sample(dataset)
    report("languages", 0, len(chosen))
    found["languages"] = _or_needs(lambda: {"looked_at": len(chosen), "found": languages(dataset.records(chosen))})
    report("personal data", 0, len(chosen))
    found["personal_data"] = _or_needs(lambda: _personal(dataset, chosen))
    found["problems"] = dataset.problems.to_json()  # last: lengths add to them
    found["left_out"] = dataset.problems.left_out
    return found


def _or_needs(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return make()
    except PenjingError as error:
        if "pip install" not in error.attempt:
            return {"failed": error.fact}
        return {"needs": error.attempt}


def _label_counts(dataset: Dataset) -> dict[str, int]:
    counts = dict.fromkeys(dataset.labels, 0)
    for names, number in zip(dataset.combinations, np.bincount(dataset.stratum_N), strict=True):
        for name in names:
            counts[name] += int(number)
    return counts


def _lengths(dataset: Dataset, codec: Codec | None, max_tokens: int, question: str, report: Progress) -> dict[str, Any]:
    """In tokens with a model, else in characters. What does not fit is noted among the problems."""
    sizes, targets = [], 0
    for number, record in enumerate(dataset.records()):
        if number % 256 == 0:
            report("lengths", number, len(dataset))
        if codec is None:
            sizes.append(sum(len(part) for part in record.parts()))
            continue
        examples = list(codec.examples(record, max_tokens=max_tokens, question=question))
        sizes.append(sum(len(example.token_T) + example.left_out for example in examples))
        targets += sum(int(example.target_T.sum()) for example in examples)
        if any(example.left_out for example in examples):
            dataset.note("longer than fits, cut", record)
        if not any(example.target_T.any() for example in examples):
            dataset.note("nothing left to learn from", record)
    size_N = np.array(sizes)
    low, median, high = np.quantile(size_N, [0.05, 0.5, 0.95])
    found: dict[str, Any] = {
        "unit": "tokens" if codec else "characters",
        "total": int(size_N.sum()),
        "shortest": int(size_N.min()),
    }
    found |= {"p5": float(low), "median": float(median), "p95": float(high), "longest": int(size_N.max())}
    return found | ({"targets": targets, "max_tokens": max_tokens} if codec else {})


def _shown(dataset: Dataset, codec: Codec, index: int, max_tokens: int, question: str) -> dict[str, Any]:
    record = dataset[index]
    example = next(codec.examples(record, max_tokens=max_tokens, question=question))
    shown = {"file": record.file, "line": record.line, "tokens": len(example.token_T), "left_out": example.left_out}
    return shown | {"pieces": pieces(example, codec)}


def pieces(example: Example, codec: Codec) -> list[dict[str, Any]]:
    """The text of an example, cut where what is learnt begins and ends."""
    found: list[dict[str, Any]] = []
    edges = [0, *(np.flatnonzero(np.diff(example.target_T)) + 1).tolist(), len(example.token_T)]
    for start, end in pairwise(edges):
        if end > start:
            text = codec.tokenizer.decode(example.token_T[start:end].tolist(), skip_special_tokens=False)
            found.append({"target": bool(example.target_T[start]), "text": text})
    return found


def _near(dataset: Dataset, other: Dataset | None, seed: int, report: Progress) -> dict[str, Any]:
    if other is not None:
        train, held_out = whole(dataset), whole(other)
    else:
        parts = split(dataset, validation=0.0, held_out=0.1, seed=seed)
        train, held_out = parts.train, parts.held_out
    near = near_duplicates(train, held_out, progress=report)
    shown = sorted(near, key=lambda one: -one.similarity)[:20]
    return {
        "threshold": THRESHOLD,
        "held_out": str(other.files[0]) if other else f"a tenth of the data, seed {seed}",
        "held_out_records": len(held_out),
        "records": len(near),
        "share": len(near) / len(train),
        "nearest": [
            {"line": _line(train, n.train), "held_out_line": _line(held_out, n.held_out), "similarity": n.similarity}
            for n in shown
        ],
    }


def _line(part: Part, at: int) -> str:
    file, line = part.dataset.place(int(part.index_N[at]))
    return f"{file}:{line}"


def _personal(dataset: Dataset, chosen: Sequence[int]) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    places = []
    for finding in personal_data(dataset.records(chosen)):
        kinds[finding.kind] = kinds.get(finding.kind, 0) + 1
        places.append({"kind": finding.kind, "file": finding.file, "line": finding.line})
    return {"looked_at": len(chosen), "found": kinds, "places": places[:100]}
