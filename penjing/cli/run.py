"""run: one answer."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from penjing.cli import _sampling as options
from penjing.cli._show import emit, note, number
from penjing.cli._values import Context, Json, Kv, Model, Threads

PANEL = "Use it"


def command(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="- reads it from stdin.", show_default=False)],
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without chat template.")] = False,
    system: options.System = "",
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.Penalty = 1.0,
    stop: options.Stop = None,
    seed: options.Seed = None,
    json_schema: options.JsonSchema = None,
    regex: options.Regex = None,
    grammar: options.Grammar = None,
    adapter: options.Adapter = None,
    prefix_cache: options.PrefixCache = None,
    context: Context = 2048,
    threads: Threads = None,
    kv: Kv = "f16",
    as_json: Json = False,
) -> None:
    """Answer a prompt, word by word as it comes. Greedy unless a temperature is given."""
    from penjing import api

    text = sys.stdin.read() if prompt == "-" else prompt
    settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    settings |= {"repetition_penalty": repetition_penalty, "seed": seed}
    form = options.form(json_schema, regex, grammar)
    with api.open(model, context=context, threads=threads, kv=kv, prefix_cache=prefix_cache, tell=note) as opened:
        if adapter:
            opened.load_adapter(adapter)
        settings["constraint"] = opened.constraint(*form) if form else None
        if raw or not (opened.checkpoint.chat_template or system):
            generation = opened.stream(text, max_tokens=max_tokens, stop=stop or (), **settings)
        else:
            messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": text}]
            generation = opened.stream_chat(messages, max_tokens=max_tokens, stop=stop or (), **settings)
        pieces = []
        for piece in generation:
            pieces.append(piece)
            if not as_json:
                print(piece, end="", flush=True)
        result = generation.result
    assert result is not None  # the iterator has ended
    found = {
        "model": opened.name,
        "text": "".join(pieces),
        "stop_reason": result.reason,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "tokens": len(result.tokens),
        "prefill_tokens_per_s": result.prefill_tokens_per_s,
        "decode_tokens_per_s": result.decode_tokens_per_s,
    }
    emit(found, as_json, lambda console: console.print())
    speeds = f"{number(result.prefill_tokens_per_s)} tokens/s in, {number(result.decode_tokens_per_s)} out"
    note(f"{result.prompt_tokens} + {len(result.tokens)} tokens, {speeds}, ended by {result.reason}")
