"""The public data sets of bench_adapt.py as labelled texts: training, validation and test, no text in two of them."""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Labelled:
    text: str
    labels: tuple[int, ...]  # one, but for data sets of several


@dataclass(frozen=True)
class Task:
    """`asked`: what follows a text. `split`: how the parts came about, for the report."""

    labels: list[str]
    asked: str
    train: list[Labelled]
    validation: list[Labelled]
    test: list[Labelled]
    split: str

    @property
    def several(self) -> bool:
        return any(len(entry.labels) > 1 for entry in self.train)


def banking77(folder: Path) -> Task:
    labels = json.loads((folder / "categories.json").read_text())
    known = {label: number for number, label in enumerate(labels)}

    def read(name: str) -> list[Labelled]:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            return [Labelled(row["text"].strip(), (known[row["category"]],)) for row in csv.DictReader(file)]

    test = read("test.csv")
    train, validation = _apart(_without(read("train.csv"), test), 1000)
    split = f"the publisher's test set; {len(validation)} of its training set are validation"
    return Task(labels, "\nIntent:", train, validation, test, split)


def pubmedqa(folder: Path) -> Task:
    labels = ["yes", "no", "maybe"]
    entries = json.loads((folder / "ori_pqal.json").read_text()).values()
    found = [
        Labelled(f"{' '.join(e['CONTEXTS'])}\n{e['QUESTION']}", (labels.index(e["final_decision"]),)) for e in entries
    ]
    rest, test = _apart(found, len(found) * 3 // 10)
    train, validation = _apart(rest, len(found) // 10)
    split = f"{len(found)} labelled questions: 60% training, 10% validation, 30% test, drawn once"
    return Task(labels, "\nAnswer, yes, no or maybe:", train, validation, test, split)


def cuad(folder: Path) -> Task:
    """Which of the types a clause is, for clauses that are of one type only; contracts are in one part only."""
    with (folder / "master_clauses.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [name for name in rows[0] if name != "Filename" and not name.replace(" ", "").endswith("-Answer")]
    order = np.random.default_rng(0).permutation(len(rows))
    clauses = [_clauses(rows[number], labels) for number in order]
    types: dict[str, set[int]] = {}
    for text, label in (pair for contract in clauses for pair in contract):
        types.setdefault(text, set()).add(label)
    parts: list[list[Labelled]] = [[], [], []]
    seen: set[str] = set()
    for number, contract in enumerate(clauses):
        for text, label in contract:
            if len(types[text]) == 1 and text not in seen:
                seen.add(text)
                parts[0 if number < 0.6 * len(rows) else 1 if number < 0.7 * len(rows) else 2].append(
                    Labelled(text, (label,))
                )
    split = f"{len(rows)} contracts: 60% training, 10% validation, 30% test; clauses of two types or more left out"
    return Task(labels, "\nType of clause:", *parts, split)


def goemotions(folder: Path) -> Task:
    labels = (folder / "labels.txt").read_text().split()

    def read(name: str) -> list[Labelled]:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        cells = [line.split("\t") for line in lines if line.strip()]
        return [Labelled(text, tuple(map(int, numbers.split(",")))) for text, numbers, _ in cells]

    test = read("test.tsv")
    train, validation = _without(read("train.tsv"), test), _without(read("dev.tsv"), test)
    return Task(labels, "\nEmotion:", _without(train, validation), validation, test, "the publisher's three sets")


TASKS: dict[str, Callable[[Path], Task]] = {
    "banking77": banking77,
    "pubmedqa": pubmedqa,
    "cuad": cuad,
    "goemotions": goemotions,
}


def _clauses(row: dict[str, str], labels: list[str]) -> list[tuple[str, int]]:
    """Of 20 characters or more: shorter ones are names and dates."""
    found = []
    for number, label in enumerate(labels):
        for text in ast.literal_eval(row[label] or "[]"):
            if len(text.strip()) >= 20:
                found.append((text.strip(), number))
    return found


def _without(entries: Iterable[Labelled], others: list[Labelled]) -> list[Labelled]:
    known = {entry.text for entry in others}
    return [entry for entry in entries if entry.text not in known]


def _apart(entries: list[Labelled], count: int) -> tuple[list[Labelled], list[Labelled]]:
    """What is left, and `count` drawn once and for all; the same text is never in both."""
    texts = list(dict.fromkeys(entry.text for entry in entries))
    order = np.random.default_rng(0).permutation(len(texts))
    taken = {texts[at] for at in order[:count]}
    return [e for e in entries if e.text not in taken], [e for e in entries if e.text in taken]
