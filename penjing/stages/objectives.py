"""What a kind of data is learned by, and in which batches: texts token by token, preferences and pairs in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from penjing.errors import PenjingError
from penjing.train.batch import Batch, Document, PackedBatches
from penjing.train.groups import GroupedBatches
from penjing.train.objectives import causal_lm, contrastive, dpo, orpo

AUTO: Final = "auto"
#: of kinds that are not for causal_lm alone, the usual one first
_OBJECTIVES: Final = {"preference": ("dpo", "orpo", "causal_lm"), "pairs": ("contrastive",)}
PREFERENCES: Final = ("dpo", "orpo")


def choose(kind: str, asked: str, where: str) -> str:
    """The objective for a kind of data, `AUTO` for the usual one. PenjingError names those there are."""
    possible = _OBJECTIVES.get(kind, ("causal_lm",))
    if asked == AUTO:
        return possible[0]
    if asked not in possible:
        attempt = "--train objective=" + " or ".join(possible)
        raise PenjingError(f"{asked} does not learn from data of the kind {kind}", where=where, attempt=attempt)
    return asked


def objective(name: str, *, beta: float, group: int, reference: Any = None) -> Any:
    """beta: of dpo, and the weight of orpo's odds. group: documents that belong together. reference: dpo's."""
    if name == "dpo":
        return dpo.Objective(reference=reference, beta=beta)
    if name == "orpo":
        return orpo.Objective(weight=beta)
    return contrastive.Objective(group=group) if name == "contrastive" else causal_lm.Objective()


class Tasks:
    """Batches of one task, or of several in turns: step s is of task s mod their number.

    Documents that belong together, `group` of them, stand one after the other and in one row; a row has as many groups
    as fit `length` on average, and for contrastive pairs two at least, or there would be nothing to tell apart.
    """

    def __init__(self, documents: Mapping[str, Sequence[Document]], *, group: int, alone: bool, **how: Any) -> None:
        """alone: a row may hold a single group. how: rows, length, seed and files, as `PackedBatches` has them."""
        self.names = tuple(documents)
        if not self.names:
            raise PenjingError("no examples to learn from", where="--data", attempt="data with at least one example")
        self.of_task = [
            PackedBatches(task, **how) if group == 1 else _grouped(task, group, alone, **how)
            for task in documents.values()
        ]

    @property
    def digest(self) -> str:
        return "+".join(batches.digest for batches in self.of_task)

    @property
    def steps_per_epoch(self) -> float:
        return sum(batches.steps_per_epoch for batches in self.of_task)

    def at(self, step: int) -> list[Batch]:
        return self.of_task[step % len(self.of_task)].at(step // len(self.of_task))


def _grouped(
    documents: Sequence[Document], group: int, alone: bool, *, rows: int, length: int, **how: Any
) -> GroupedBatches:
    groups = [documents[start : start + group] for start in range(0, len(documents), group)]
    tokens = sum(len(document.token_T) for document in documents)
    fitting = length * len(groups) // max(1, tokens)
    least = 1 if alone else 2
    return GroupedBatches(groups, rows=rows, groups_per_row=max(least, min(fitting, len(groups))), **how)
