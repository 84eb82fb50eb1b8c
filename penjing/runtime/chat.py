"""Messages to the text that a model was trained on, and a conversation that computes nothing twice.

A message is {"role": "system" | "user" | "assistant", "content": text}, and whatever else its template reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jinja2

from penjing.errors import PenjingError
from penjing.runtime.generate import Decoder, Generation, Result, Tokenizer, generate
from penjing.runtime.sampling import Sampler
from penjing.runtime.template_sandbox import FILENAME, MOST_SECONDS, LimitError, Sandbox, limits

Message = dict[str, Any]

MOST_TEMPLATE_CHARS = 1 << 20


class Encoder(Tokenizer, Protocol):
    """A tokenizer that also encodes, as `tokenizers.Tokenizer` does."""

    def encode(self, sequence: str, *, add_special_tokens: bool = ...) -> Any: ...


class ChatTemplate:
    """A Jinja chat template, as transformers renders it. Hostile templates end in a PenjingError."""

    def __init__(self, template: str | None, bos: str = "", eos: str = "") -> None:
        """Raises PenjingError for no template: words in an order the model never saw give silently bad answers."""
        if not template:
            raise PenjingError(
                "this model has no chat template",
                where="chat",
                attempt="penjing run --raw MODEL PROMPT continues plain text",
            )
        if len(template) > MOST_TEMPLATE_CHARS:
            raise _refused(f"is {len(template)} characters long")
        self._special = {"bos_token": bos, "eos_token": eos}
        sandbox = Sandbox()
        try:
            with limits(MOST_SECONDS):
                code = sandbox.compile(template, filename=FILENAME)
        except (jinja2.TemplateError, LimitError, RecursionError, SyntaxError, OverflowError, MemoryError) as error:
            raise _refused(f"cannot be read: {error or type(error).__name__}") from error
        self._template = jinja2.Template.from_code(sandbox, code, sandbox.make_globals(None))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt. variables: more that the template reads, such as `tools`."""
        names = {"tools": None, "documents": None} | self._special | variables
        names |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            with limits(MOST_SECONDS):
                return self._template.render(names)
        except jinja2.exceptions.SecurityError as error:
            raise _refused(f"tries to leave its sandbox: {error}") from error
        except LimitError as error:
            raise _refused(str(error)) from error
        except jinja2.TemplateError as error:
            raise _refused(f"does not accept these messages: {error}") from error
        except Exception as error:  # whatever the template does wrong: it is data, not our code
            raise _refused(f"fails: {type(error).__name__}: {error}") from error


def _refused(fact: str) -> PenjingError:
    return PenjingError(
        f"the chat template {fact}", where="the model's chat template", attempt="penjing run --raw goes without it"
    )


class Conversation:
    """Turns with one session. What the session already holds of the rendered text is not computed again."""

    def __init__(
        self,
        session: Decoder,
        tokenizer: Encoder,
        template: ChatTemplate,
        *,
        eos: Sequence[int],
        system: str = "",
        before_prompt: Callable[[Sequence[int]], list[int] | None] | None = None,
        after_prompt: Callable[[int], None] | None = None,
    ) -> None:
        """before_prompt: may make the session hold a prompt's beginning; what it holds then (None: as it was).

        after_prompt: as of `generate`.
        """
        self._before_prompt, self._after_prompt = before_prompt, after_prompt
        self._session, self._tokenizer, self._template, self._eos = session, tokenizer, template, tuple(eos)
        self._first: list[Message] = [{"role": "system", "content": system}] if system else []
        self._cached: list[int] = []
        self.messages: list[Message] = []
        self.result: Result | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._first)

    def say(
        self, text: str, *, max_tokens: int = 512, sampler: Sampler | None = None, stop: Sequence[str] = ()
    ) -> Iterator[str]:
        """The answer, a piece at a time. An answer that is interrupted stays in the conversation as far as it went.

        A turn that fails before its first word leaves the conversation as it was.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        prompt_ids = self._tokenizer.encode(self._template.render(asked), add_special_tokens=False).ids
        if self._before_prompt and (held := self._before_prompt(prompt_ids)) is not None:
            self._cached[:] = held
        generation = generate(
            self._session,
            self._tokenizer,
            prompt_ids,
            max_tokens=max_tokens,
            sampler=sampler,
            stop=stop,
            eos=self._eos,
            cached=self._cached,
            speculate=True,
            after_prompt=self._after_prompt,
        )
        return self._answer(asked, generation)

    def _answer(self, asked: list[Message], generation: Generation) -> Iterator[str]:
        pieces: list[str] = []
        try:
            for piece in generation:
                pieces.append(piece)
                yield piece
        finally:
            generation.close()
            self.result = generation.result
            if pieces or (self.result and self.result.reason == "eos"):
                self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]
