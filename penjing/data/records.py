"""Rows with columns to records with a meaning: texts, conversations, labelled texts, preferences, pairs.

What a row is for is recognised by its columns' names, those that public data sets use; or the columns are named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from penjing.errors import PenjingError

Message = dict[str, str]
Row = Mapping[str, Any]
#: which columns stand for which role; several are joined by an empty line
Columns = dict[str, tuple[str, ...]]

KINDS: Final = ("chat", "preference", "pairs", "instruction", "classification", "text")
#: role → names of columns that play it, best first; a role that is needed comes before those that may be absent
ROLES: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "chat": {"messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "turns")},
    "preference": {
        "chosen": ("chosen", "preferred", "accepted"),
        "rejected": ("rejected", "dispreferred"),
        "prompt": ("prompt", "question", "instruction", "query", "input"),
    },
    "pairs": {
        "first": ("anchor", "query", "sentence1", "premise", "text1", "sentence_a"),
        "second": ("positive", "pos", "sentence2", "hypothesis", "text2", "sentence_b", "passage", "document"),
        "negative": ("negative", "neg", "hard_negative"),
    },
    "instruction": {
        "instruction": ("instruction", "prompt", "question", "query", "problem", "user"),
        "output": ("output", "response", "answer", "completion", "solution", "assistant", "reply"),
        "input": ("input", "context"),
        "system": ("system", "system_prompt"),
    },
    "classification": {
        "text": ("text", "sentence", "content", "utterance", "review", "question", "query", "title"),
        "label": ("label", "labels", "category", "class", "intent", "sentiment", "target", "emotion", "topic"),
    },
    "text": {"text": ("text", "content", "body", "document", "article", "story")},
}
_OPTIONAL: Final = frozenset({"prompt", "negative", "input", "system"})
_SPEAKERS: Final = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
    "bot": "assistant", "model": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One row, understood. `file` and `line` say where it stands (of one .json list or table: its number there).

    chat, instruction: `messages`. preference: `messages` is the prompt, perhaps empty, before `chosen` and `rejected`.
    classification: `text` and `labels`. pairs: `text` and `second`, perhaps `negative`. text: `text`.
    """

    kind: str
    file: str
    line: int
    text: str = ""
    messages: tuple[Message, ...] = ()
    labels: tuple[str, ...] = ()
    chosen: str = ""
    rejected: str = ""
    second: str = ""
    negative: str = ""

    def parts(self) -> tuple[str, ...]:
        """All that it says, without who says it."""
        said = tuple(message["content"] for message in self.messages)
        return tuple(
            part for part in (self.text, *said, self.second, self.negative, self.chosen, self.rejected) if part
        )


class BadRowError(Exception):
    """A row that is no record of its kind; the message is one of a few, so that they can be counted."""


@dataclass(frozen=True)
class Meaning:
    """How rows become records. `separator` cuts several labels in one cell; `label_names` stand for numbers 0, 1, …"""

    kind: str
    columns: Columns
    separator: str | None = None
    label_names: tuple[str, ...] = ()

    def record(self, row: Row, file: str, line: int) -> Record:
        """Raises BadRowError."""
        missing = [name for names in self.columns.values() for name in names if name not in row]
        if missing:
            raise BadRowError(f"no column {missing[0]}")
        make = {"chat": self._chat, "instruction": self._instruction, "classification": self._classification}
        fields = make.get(self.kind, self._plain)(row)
        return Record(kind=self.kind, file=file, line=line, **fields)

    def _cell(self, row: Row, role: str, *, needed: bool = True) -> str:
        text = "\n\n".join(filter(None, (_text(row[name]) for name in self.columns.get(role, ()))))
        if needed and not text.strip():
            raise BadRowError(f"empty {'answer' if role in ('output', 'chosen', 'rejected') else role}")
        return text

    def _plain(self, row: Row) -> dict[str, Any]:
        if self.kind == "preference":
            return self._preference(row)
        if self.kind == "pairs":
            first, second = self._cell(row, "first"), self._cell(row, "second")
            return {"text": first, "second": second, "negative": self._cell(row, "negative", needed=False)}
        return {"text": self._cell(row, "text")}

    def _chat(self, row: Row) -> dict[str, Any]:
        messages = conversation(row[self.columns["messages"][0]])
        if not any(message["role"] == "assistant" for message in messages):
            raise BadRowError("no answer in the conversation")
        return {"messages": messages}

    def _instruction(self, row: Row) -> dict[str, Any]:
        system = self._cell(row, "system", needed=False)
        asked = "\n\n".join(filter(None, (self._cell(row, "instruction"), self._cell(row, "input", needed=False))))
        answer = {"role": "assistant", "content": self._cell(row, "output")}
        first = ({"role": "system", "content": system},) if system.strip() else ()
        return {"messages": (*first, {"role": "user", "content": asked}, answer)}

    def _classification(self, row: Row) -> dict[str, Any]:
        cell = row[self.columns["label"][0]]
        found = list(cell) if isinstance(cell, (list, tuple)) else [cell]
        if self.separator:
            found = [part for entry in found for part in _text(entry).split(self.separator)]
        labels = tuple(self._label(entry) for entry in found)
        if not labels or not all(labels):
            raise BadRowError("empty label")
        return {"text": self._cell(row, "text"), "labels": labels}

    def _label(self, cell: Any) -> str:
        name = _text(cell).strip()
        if not self.label_names:
            return name
        if name in self.label_names:
            return name
        if not name.isdecimal() or int(name) >= len(self.label_names):
            raise BadRowError("label without a name")
        return self.label_names[int(name)]

    def _preference(self, row: Row) -> dict[str, Any]:
        """Chosen and rejected as texts after a prompt, or as two conversations that differ in their last answer."""
        chosen, rejected = row[self.columns["chosen"][0]], row[self.columns["rejected"][0]]
        prompt = row[self.columns["prompt"][0]] if "prompt" in self.columns else ""
        before = conversation(prompt) if isinstance(prompt, list) else ()
        if not before and _text(prompt).strip():
            before = ({"role": "user", "content": _text(prompt)},)
        if isinstance(chosen, list) and isinstance(rejected, list):
            first, second = conversation(chosen), conversation(rejected)
            if len(first) > 1:  # they hold the prompt too
                before = first[:-1]
            if len(first) == len(second) and first[:-1] != second[:-1]:
                raise BadRowError("chosen and rejected answer different prompts")
            chosen, rejected = first[-1]["content"], second[-1]["content"]
        chosen, rejected = _text(chosen), _text(rejected)
        if not chosen.strip() or not rejected.strip():
            raise BadRowError("empty answer")
        if chosen == rejected:
            raise BadRowError("chosen is rejected")
        return {"messages": before, "chosen": chosen, "rejected": rejected}


def conversation(value: Any) -> tuple[Message, ...]:
    """Messages with role and content, or ShareGPT's from and value. Raises BadRowError."""
    if not isinstance(value, (list, tuple)) or not value:
        raise BadRowError("no messages")
    found = []
    for entry in value:
        if not isinstance(entry, Mapping):
            raise BadRowError("no messages")
        speaker = _SPEAKERS.get(str(entry.get("role") or entry.get("from") or entry.get("speaker") or "").lower())
        content = entry.get("content", entry.get("value", entry.get("text")))
        if isinstance(content, list):  # OpenAI's parts
            content = "".join(_text(part.get("text")) for part in content if isinstance(part, Mapping))
        if speaker is None:
            raise BadRowError("a message of an unknown role")
        if speaker == "assistant" and not _text(content).strip():
            raise BadRowError("empty answer")
        found.append({"role": speaker, "content": _text(content)})
    return tuple(found)


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, (list, tuple)):
        return "\n".join(_text(part) for part in cell)
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return str(cell)


def recognise(
    rows: Sequence[Row],
    kind: str | None = None,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    where: str = "",
) -> tuple[str, Columns]:
    """The kind of these rows and the columns of its roles. Raises PenjingError, naming what there is.

    columns: role → column, or several joined by +; what is not named is recognised.
    """
    named = {role: tuple(c.split("+")) if isinstance(c, str) else tuple(c) for role, c in (columns or {}).items()}
    counted: dict[str, int] = {}
    for row in rows:
        for name in row:
            counted[str(name)] = counted.get(str(name), 0) + 1
    present = [name for name, count in counted.items() if 2 * count > len(rows)]  # a few bad rows decide nothing
    absent = [name for names in named.values() for name in names if name not in counted]
    if absent:
        raise PenjingError(f"no column {absent[0]!r}", where=where, attempt=f"one of: {', '.join(counted)}")
    if kind is not None and kind not in KINDS:
        raise PenjingError(f"no kind of data {kind!r}", where=where, attempt=", ".join(KINDS))
    for candidate in [kind] if kind else KINDS:
        if set(named) <= set(ROLES[candidate]):
            found = _assign(candidate, present, named)
            if found is not None and _fits(candidate, found, rows):
                return candidate, found
    said = f"columns {', '.join(present) or 'none'} are not recognised{f' as {kind}' if kind else ''}"
    roles = "; ".join(f"{name}: {', '.join(ROLES[name])}" for name in ([kind] if kind else KINDS))
    raise PenjingError(
        said, where=where, attempt=f"name them, --column ROLE=NAME, with the roles of one kind ({roles})"
    )


def _assign(kind: str, present: Sequence[str], named: Columns) -> Columns | None:
    by_name = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in reversed(present)}
    found: Columns = dict(named)
    used = {name for names in named.values() for name in names}
    for role, synonyms in ROLES[kind].items():
        if role in found:
            continue
        column = next((by_name[s] for s in synonyms if s in by_name and by_name[s] not in used), None)
        if column is not None:
            found[role] = (column,)
            used.add(column)
        elif role not in _OPTIONAL:
            return None
    return found


def _fits(kind: str, columns: Columns, rows: Sequence[Row]) -> bool:
    """A column named like a conversation may hold a text: MTS-Dialog's `dialogue` does."""
    if kind != "chat":
        return True
    held = [row.get(columns["messages"][0]) for row in rows]
    return any(isinstance(value, list) for value in held)
