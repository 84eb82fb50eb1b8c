"""Options of verbs that let a model speak."""

from __future__ import annotations

from typing import Annotated

import typer

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
