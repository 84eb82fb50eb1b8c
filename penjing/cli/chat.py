"""chat: a conversation in the terminal, or with lines from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from penjing.cli import _sampling as options
from penjing.cli._show import note
from penjing.cli._values import Context, Kv, Model, Threads
from penjing.errors import PenjingError

if TYPE_CHECKING:
    from penjing.runtime.chat import Conversation

PANEL = "Use it"
_HELP: Final = "/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer"


def command(
    model: Model,
    system: options.System = "",
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.Penalty = 1.0,
    stop: options.Stop = None,
    seed: options.Seed = None,
    adapter: options.Adapter = None,
    prefix_cache: options.PrefixCache = None,
    context: Context = 4096,
    threads: Threads = None,
    kv: Kv = "f16",
) -> None:
    """Talk with a model. What was said is not computed again."""
    from penjing import api
    from penjing.runtime.sampling import Sampler

    sampler = Sampler(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    turn: dict[str, Any] = {"max_tokens": max_tokens, "sampler": sampler, "stop": stop or ()}
    with api.open(model, context=context, threads=threads, kv=kv, prefix_cache=prefix_cache, tell=note) as opened:
        if adapter:
            opened.load_adapter(adapter)
        conversation = opened.conversation(system)
        if sys.stdin.isatty():
            note(f"{opened.name}: {_HELP}")
        for line in _lines():
            if line == "/exit":
                break
            if line == "/reset":
                conversation.reset()
                note("forgotten")
            elif line == "/help":
                note(_HELP)
            elif line:
                _answer(conversation, line, turn)


def _lines() -> Iterator[str]:
    """What the person says, line by line. Ctrl-C at the prompt clears the line; twice in a row ends the program."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    import readline  # noqa: F401 - importing it gives input() its editing and history

    interrupted = False
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            note("\n(once more to leave)")
            continue
        interrupted = False
        yield line


def _answer(conversation: Conversation, line: str, turn: dict[str, Any]) -> None:
    try:
        for piece in conversation.say(line, **turn):
            print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        note("(stopped)")
    except PenjingError as error:  # a turn that cannot be: the next one may
        if not sys.stdin.isatty():
            raise
        note(str(error))
