"""Options of verbs that let a model speak."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penjing.errors import PenjingError
from penjing.files import os_error

if TYPE_CHECKING:
    from penjing.runtime.constrain import Kind

MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of an answer.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")]
TopK = Annotated[int, typer.Option("--top-k", help="Keep the k likeliest; 0 is off.")]
TopP = Annotated[float, typer.Option("--top-p", help="Keep the likeliest that sum to p; 1 is off.")]
MinP = Annotated[float, typer.Option("--min-p", help="Drop those below p times the likeliest; 0 is off.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Make tokens seen before less likely; 1 is off.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="End before this text. May be repeated.", show_default=False)
]
System = Annotated[str, typer.Option("--system", help="A system message.", show_default=False)]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Same seed, same words; default: by chance.", show_default=False)
]
JsonSchema = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="Answer with JSON that fits this schema.", show_default=False),
]
Regex = Annotated[
    str | None, typer.Option("--regex", help="Answer with text that matches all of this.", show_default=False)
]
Grammar = Annotated[
    Path | None,
    typer.Option("--grammar", metavar="FILE", help="Answer with text of this Lark grammar.", show_default=False),
]

Adapter = Annotated[
    Path | None,
    typer.Option("--adapter", metavar="FILE", help="An adapter file, or a folder of peft.", show_default=False),
]
PrefixCache = Annotated[
    str | None,
    typer.Option(
        "--prefix-cache",
        metavar="DIR|FILE",
        help="Keep what prompts begin with here, so that it is evaluated once. DIR ends in /, or is there.",
        show_default=False,
    ),
]


def form(json_schema: Path | None, regex: str | None, grammar: Path | None) -> tuple[Kind, str] | None:
    """What kind of form an answer must have, and its text; None: any. Raises PenjingError for more than one."""
    forms: list[tuple[Kind, Path | str | None]] = [("json_schema", json_schema), ("regex", regex), ("grammar", grammar)]
    given = [(kind, value) for kind, value in forms if value is not None]
    if len(given) > 1:
        raise PenjingError("an answer has one form", where="--json-schema, --regex, --grammar", attempt="one of them")
    for kind, value in given:
        return kind, value if isinstance(value, str) else _read(value)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise os_error(error, path) from error
    except UnicodeDecodeError as error:
        raise PenjingError("not UTF-8 text", where=str(path)) from error
