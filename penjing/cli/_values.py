"""What people type: sizes, settings, overrides, texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from penjing.errors import PenjingError

if TYPE_CHECKING:
    from penjing.data.text import Corpus

PYTHON_DOCS: Final = "python-docs"
_UNITS: Final = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
#: settings that have an option of their own and cannot be set for all; `method` can be for some parts
_OPTIONS: Final = (
    "out", "overrides", "data", "calibration_windows", "by_block", "max_bytes", "max_seconds", "seed", "force",
    "progress", "tell", "self",
)  # fmt: skip
_MODEL_HELP: Final = "Folder, .gguf, .penjing, smollm2-135m, or a hub name like org/name."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP, show_default=False)]
Models = Annotated[list[str], typer.Argument(metavar="MODEL…", help=_MODEL_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="End stdout with one JSON object instead of a table.")]
Force = Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same bytes.")]
MaxMemory = Annotated[
    str | None,
    typer.Option("--max-memory", metavar="SIZE", help="Do not begin what takes more, e.g. 2GB.", show_default=False),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option("--max-minutes", min=0.0, help="Do not begin what takes longer.", show_default=False),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Default: every core.", show_default=False)]
Kv = Annotated[
    Literal["auto", "i8", "f16", "f32"],
    typer.Option(
        "--kv",
        help="How keys and values are kept; i8 is less memory and faster prompts; auto: i8 unless keys have a bias.",
    ),
]
Context = Annotated[int, typer.Option("--context", min=1, help="Tokens that fit, prompt and answer together.")]


def size_bytes(text: str) -> int:
    """Bytes from 80MB (decimal, 80,000,000), 76MiB (binary) or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise PenjingError(
            f"not a size: {text!r}", where="command line", attempt="a number and a unit, e.g. 80MB or 76MiB"
        )
    found = round(float(match[1]) * factor)
    if not 1 <= found < 2**63:
        raise PenjingError(f"an impossible size: {text!r}", where="command line", attempt="for example 80MB")
    return found


def settings(entries: Sequence[str]) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """`key=value` for every part, and `GLOB:key=value` for parts whose name matches, in order.

    Keys given twice under one glob: the last counts. Values are numbers, true, false, none or text.
    """
    spec: dict[str, Any] = {}
    overrides: dict[str, dict[str, Any]] = {}
    for entry in entries:
        target, equals, value = entry.partition("=")
        glob, colon, key = target.rpartition(":")
        wrong = not key.isidentifier() or (colon and not glob) or key in _OPTIONS or (key == "method" and not colon)
        if not equals or wrong:
            raise PenjingError(
                f"not a setting: {entry!r}", where="--set", attempt="key=value, or GLOB:key=value, e.g. embed:bits=8"
            )
        into = overrides.setdefault(glob, {}) if colon else spec
        into[key] = _value(value.strip())
    return spec, list(overrides.items())


def _value(text: str) -> Any:
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def corpus(text: str) -> Corpus:
    """A text file, a folder of them, or `python-docs`."""
    if text == PYTHON_DOCS:
        from penjing.data import python_docs

        return python_docs.corpus()
    from penjing.data.text import read_corpus

    path = Path(text).expanduser()
    if not path.exists():
        raise PenjingError("no such text", where=text, attempt=f"a text file, a folder of them, or {PYTHON_DOCS}")
    return read_corpus([path])


def text_to_learn(text: str) -> Corpus | str:
    """A `corpus`, or `self`: what the model writes, which the model has to be asked for."""
    from penjing.data.text import SELF

    return SELF if text == SELF else corpus(text)


def words(text: str) -> list[str]:
    """A comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def whole_numbers(text: str, option: str, least: int = 1) -> list[int]:
    """A comma-separated list of numbers, at least one."""
    try:
        found = [int(word) for word in words(text)]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise PenjingError(f"not a number of {least} or more: {text!r}", where=option, attempt=f"{option} 4, or 4,8")
    return found
