"""Stages: parent to child and evidence. What they share is here: settings from text, and where a model came from."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from penjing.checkpoint import Checkpoint
from penjing.errors import PenjingError
from penjing.files import write_file
from penjing.format.hf_writer import LAYOUTS

#: records of all stages so far, in a checkpoint's folder
EVIDENCE: Final = "evidence.jsonl"
#: what is under way, steps done, steps in all (0: not known)
Progress = Callable[[str, int, int], None]

_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def build_spec(spec_class: type[Any], settings: Mapping[str, Any], *, where: str) -> Any:
    """A technique's Spec from settings, whose values may be text. PenjingError names the field that will not do."""
    kinds = typing.get_type_hints(spec_class)
    fields = [field.name for field in dataclasses.fields(spec_class)]
    for name in settings:
        if name not in fields:
            raise PenjingError(f"no setting {name!r}", where=where, attempt="one of: " + ", ".join(fields))
    return spec_class(**{name: _convert(name, value, kinds[name], where) for name, value in settings.items()})


def _convert(name: str, value: Any, kind: Any, where: str) -> Any:
    if type(value) is kind:
        return value
    try:
        if kind is bool and isinstance(value, str):
            return _BOOLS[value.lower()]
        if kind is float or (kind in (int, str) and isinstance(value, str)):
            return kind(value)
    except (ValueError, KeyError, TypeError):
        pass
    raise PenjingError(f"{name} is {value!r}", where=where, attempt=f"--set {name}={kind.__name__.upper()}")


def base(checkpoint: Checkpoint) -> dict[str, Any]:
    """The model that everything began with: name, digest, licence if it says one. Kept from child to child."""
    known = _own_json(checkpoint.path).get("base")
    if isinstance(known, dict):
        return known
    return {"name": checkpoint.name, "digest": checkpoint.digest, "licence": licence(checkpoint)}


def inherit_evidence(parent: Checkpoint, folder: Path) -> None:
    """A child's evidence begins with its parent's."""
    known = parent.path / EVIDENCE
    if known.is_file() and not (folder / EVIDENCE).exists():
        write_file(folder / EVIDENCE, known.read_bytes())


def licence(checkpoint: Checkpoint) -> str | None:
    """From the config, or from the first lines of a model card."""
    said = checkpoint.config.get("license")
    if isinstance(said, str):
        return said
    card = checkpoint.path / "README.md"
    if card.is_file():
        head = card.read_text(encoding="utf-8", errors="replace")[:10_000]
        front = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
        found = front and re.search(r"^license:\s*(\S+)\s*$", front[1], re.MULTILINE)
        return found[1] if found else None
    return None


def _own_json(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / LAYOUTS).read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def version() -> str:
    """Of the installed penjing; "unknown" where it runs from its source."""
    try:
        return metadata.version("penjing")
    except metadata.PackageNotFoundError:
        return "unknown"
