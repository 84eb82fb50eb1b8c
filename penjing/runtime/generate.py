"""Tokens in, text out as it comes.

`generate` returns an iterator over pieces of text; when it ends or is interrupted, `.result` says why and how fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.runtime.binding import CANCELLED, FORGOTTEN, EngineError
from penjing.runtime.sampling import Sampler
from penjing.runtime.speculate import Speculation

StopReason = Literal["eos", "stop", "length", "context", "cancelled"]

#: tokens of a prompt that go in at once: a long prompt can be interrupted between blocks, and within one, being no more
#: than binding.WAY_BACK, without losing what came before
PREFILL_BLOCK = 256
#: a character is at most four bytes, so at most four tokens; twice as many without an end are not a character
MOST_HELD_TOKENS = 8
REPLACEMENT = "\ufffd"


class Tokenizer(Protocol):
    """The part of `tokenizers.Tokenizer` that is used here."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...


class Decoder(Protocol):
    """The part of `Session` that is used here."""

    @property
    def context(self) -> int: ...
    @property
    def length(self) -> int: ...
    def forward(self, tokens: Sequence[int], num_logits: int = 1) -> NDArray[np.float32]: ...
    def truncate(self, length: int) -> None: ...
    def cancel(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a generation ended.

    reason: eos (the model said so), stop (a stop string), length (max_tokens), context (no room left),
    cancelled (it was, or the reader went away). cached_tokens: of the prompt, still in the session from before.
    """

    reason: StopReason
    tokens: tuple[int, ...]  # as drawn, an end token included
    prompt_tokens: int
    cached_tokens: int
    prefill_s: float
    decode_s: float

    @property
    def prefill_tokens_per_s(self) -> float:
        return _rate(self.prompt_tokens - self.cached_tokens, self.prefill_s)

    @property
    def decode_tokens_per_s(self) -> float:
        """The first token costs no decode step: it falls out of the prompt."""
        return _rate(len(self.tokens) - 1, self.decode_s)


def _rate(count: int, seconds: float) -> float:
    return max(count, 0) / seconds if seconds > 0 else 0.0


class Detokenizer:
    """Text of a growing list of tokens, never cutting a character or losing a space.

    What a token means depends on its neighbours (a space before a word, three tokens for one character), so a window
    that begins with the tokens of the last piece is decoded again, and only what is new at its end is given out.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        """prompt: the tokens before. Without them a first word would lose its space where spaces begin words."""
        self._tokenizer = tokenizer
        self._window = list(prompt[-MOST_HELD_TOKENS:])
        self._given = len(self._window)  # tokens of the window whose text is out

    def add(self, token: int) -> str:
        """The text that this token completes, often none or more than the token's own."""
        self._window.append(token)
        before, after = self._texts()
        held = len(self._window) - self._given
        unfinished = len(after) <= len(before) or after.endswith(REPLACEMENT)
        if unfinished and held < MOST_HELD_TOKENS:
            return ""
        del self._window[: self._given]
        self._given = len(self._window)
        return after[len(before) :]

    def flush(self) -> str:
        """What is left at the end, less a character that was never finished."""
        before, after = self._texts()
        self._given = len(self._window)
        return after[len(before) :].rstrip(REPLACEMENT)

    def _texts(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        return (
            decode(self._window[: self._given], skip_special_tokens=True),
            decode(self._window, skip_special_tokens=True),
        )


class StopStrings:
    """Lets text through up to the first stop string, holding back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        if isinstance(stop, str) or not all(stop):
            raise PenjingError(
                f"stop strings are {stop!r}",
                where="generation settings",
                attempt="a list of strings, none of them empty",
            )
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What can go out now that `text` came. Nothing after a stop string."""
        if self.found:
            return ""
        held = self._held + text
        ends = [at for at in (held.find(stop) for stop in self._stop) if at >= 0]
        if ends:
            self.found, self._held = True, ""
            return held[: min(ends)]
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Generation(Iterator[str]):
    """Pieces of text. `result` is there once the iterator has ended, was closed or was interrupted."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._pieces = run.pieces()

    @property
    def result(self) -> Result | None:
        return self._run.result

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel(self) -> None:
        """From any thread: the text ends within the token under way."""
        self._run.cancelled = True  # first: a forward that has just ended sees it before the next begins
        self._run.session.cancel()

    def close(self) -> None:
        """Stop now. What the session holds stays known, so that the next prompt can build on it."""
        self._pieces.close()


def generate(
    session: Decoder,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    stop: Sequence[str] = (),
    eos: Collection[int] = (),
    cached: list[int] | None = None,
    speculate: bool = False,
    after_prompt: Callable[[int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Generation:
    """Continue `prompt_ids`, a piece of text at a time. Nothing is computed before the first piece is asked for.

    eos: tokens that end the text. cached: the tokens that the session holds; where the prompt begins like them nothing
    is computed again, and the list is kept up to date. None: start afresh. speculate: evaluate what seems to come ahead
    of time where that pays (see speculate.py); the text stays the same. after_prompt: called when the session holds
    just the prompt, with the number of its tokens that were evaluated. Raises PenjingError, here already, for an empty
    prompt and for one that does not fit the context.
    """
    if not len(prompt_ids):
        raise PenjingError("the prompt has no tokens", where="generate", attempt="give it some text")
    if max_tokens < 1:
        raise PenjingError(f"max_tokens is {max_tokens}", where="generate", attempt="a whole number from 1 up")
    if len(prompt_ids) > session.context:
        raise PenjingError(
            f"a prompt of {len(prompt_ids)} tokens does not fit a context of {session.context}",
            where="generate",
            attempt=f"a shorter prompt, or --context {len(prompt_ids) + max_tokens}",
        )
    run = _Run(
        session=session,
        tokenizer=tokenizer,
        prompt=[int(token) for token in prompt_ids],
        max_tokens=max_tokens,
        sampler=sampler or Sampler(),
        stops=StopStrings(stop),
        eos=frozenset(eos),
        held=[] if cached is None else cached,
        speculate=speculate,
        after_prompt=after_prompt,
        clock=clock,
    )
    return Generation(run)


@dataclass(kw_only=True)
class _Run:
    session: Decoder
    tokenizer: Tokenizer
    prompt: list[int]
    max_tokens: int
    sampler: Sampler
    stops: StopStrings
    eos: frozenset[int]
    held: list[int]  # tokens that the session holds
    speculate: bool
    after_prompt: Callable[[int], None] | None
    clock: Callable[[], float]
    cancelled: bool = False
    result: Result | None = None

    def pieces(self) -> Generator[str]:
        detokenizer = Detokenizer(self.tokenizer, self.prompt)
        drawn: list[int] = []
        reason: StopReason | None = None
        start = prefilled = decoding = self.clock()
        num_cached = self._forget_what_differs()
        try:
            logits_V = self._feed(self.prompt[num_cached:])
            prefilled = self.clock()
            if self.after_prompt:
                self.after_prompt(len(self.prompt) - num_cached)
            decoding = self.clock()
            speculation = Speculation(self.session, self.held, clock=self.clock) if self.speculate else None
            while True:
                token = self.sampler(logits_V, self.prompt + drawn)
                drawn.append(token)
                text = "" if token in self.eos else detokenizer.add(token)
                if piece := self.stops.add(text):
                    yield piece
                reason = self._end(drawn)
                if reason:
                    break
                if speculation:
                    logits_V = speculation.feed(token, self._room(len(drawn)))
                else:
                    logits_V = self._feed([token])
            if speculation:
                speculation.settle()
            rest = self.stops.add(detokenizer.flush())
            reason = "stop" if self.stops.found else reason
            if rest := rest + self.stops.flush():
                yield rest
        except EngineError as error:
            if not (self.cancelled and error.status == CANCELLED):
                raise
        finally:  # also when the reader goes away, or Ctrl-C comes
            self.result = Result(
                reason=reason or "cancelled",
                tokens=tuple(drawn),
                prompt_tokens=len(self.prompt),
                cached_tokens=num_cached,
                prefill_s=prefilled - start,
                decode_s=self.clock() - decoding,
            )

    def _end(self, drawn: list[int]) -> StopReason | None:
        if self.cancelled:
            return "cancelled"
        if drawn[-1] in self.eos:
            return "eos"
        if self.stops.found:
            return "stop"
        if len(drawn) == self.max_tokens:
            return "length"
        return "context" if len(self.held) >= self.session.context else None

    def _room(self, num_drawn: int) -> int:
        """How many tokens can follow the one that is fed now, which the last of them need not be."""
        return min(self.max_tokens - num_drawn - 1, self.session.context - len(self.held) - 1)

    def _forget_what_differs(self) -> int:
        """Keep in the session only the beginning that it shares with the prompt; how many tokens that is."""
        # after an interruption the session may hold a token more or less than the list says
        most = min(len(self.held), self.session.length, len(self.prompt) - 1)  # the last one must give logits
        shared = next((n for n in range(most) if self.held[n] != self.prompt[n]), most)
        try:
            self.session.truncate(shared)
        except EngineError as error:
            if error.status != FORGOTTEN:
                raise
            shared = 0  # a window does not reach back so far any more: the prompt is evaluated from its first token
            self.session.truncate(shared)
        del self.held[shared:]
        return shared

    def _feed(self, tokens: list[int]) -> NDArray[np.float32]:
        """Append at least one token, in blocks; logits_V after the last."""
        for begin in range(0, len(tokens), PREFILL_BLOCK):
            if self.cancelled:
                raise EngineError(CANCELLED, "cancelled", where="generate")
            block = tokens[begin : begin + PREFILL_BLOCK]
            last = begin + len(block) == len(tokens)
            logits = self.session.forward(block, num_logits=int(last))
            self.held.extend(block)
        logits_V: NDArray[np.float32] = logits[0]
        return logits_V
