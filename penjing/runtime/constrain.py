"""Answers that must have a form: a JSON Schema, a regular expression or a grammar, through llguidance.

The sampler asks before each token which ones the form allows, and tells which one was drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError

Kind = Literal["json_schema", "regex", "grammar"]
_WHERE: Final = "the form of the answer"
_REMEDIES: Final[dict[Kind, str]] = {
    "json_schema": "a JSON Schema, see https://json-schema.org",
    "regex": "a regular expression without look-around and back-references",
    "grammar": "a grammar in Lark's notation whose first rule is `start`",
}


class Vocabulary:
    """A tokenizer's tokens as llguidance knows them. It takes a third of a second to make; forms share it."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos: Sequence[int]) -> None:
        if not eos:
            raise PenjingError("the model has no end token, so an answer with a form could not end", where=_WHERE)
        self._llguidance = _llguidance()
        try:
            self.tokenizer = self._llguidance.LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(eos))
        except Exception as error:  # whatever its Rust side says
            raise PenjingError(f"llguidance cannot use the tokenizer: {error}", where=_WHERE) from error
        self.size = vocab_size

    def constraint(self, kind: Kind, text: str) -> Constraint:
        """A form, to be used for one answer. Raises PenjingError where it makes no sense."""
        matcher = self._llguidance.LLMatcher
        compilers = {
            "json_schema": matcher.grammar_from_json_schema,
            "regex": matcher.grammar_from_regex,
            "grammar": matcher.grammar_from_lark,
        }
        try:
            grammar = compilers[kind](text)
            wrong = matcher.validate_grammar(grammar, self.tokenizer)
        except ValueError as error:
            wrong = str(error)
        if wrong:
            raise PenjingError(f"{kind}: {wrong.strip()}", where=_WHERE, attempt=_REMEDIES[kind])
        return Constraint(matcher(self.tokenizer, grammar, log_level=0), self.size)


class Constraint:
    """What may come next in one answer."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros(-(-vocab_size // 32), np.uint32)

    def allow(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy in which what is not allowed is -inf. A form that is complete allows an end token only."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        masked_V: NDArray[np.float32] = _penalties().take(self._bits.view(np.uint8), axis=0).ravel()[: len(logits_V)]
        masked_V += logits_V
        return masked_V

    def try_accept(self, token: int) -> bool:
        """The token that was drawn, if the form allows it. It takes a look at one token where `allow` looks at all."""
        accepted: int = self._matcher.try_consume_tokens([token])
        self._check()
        return accepted == 1

    def accept(self, token: int) -> None:
        """The token that was drawn."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            fact = f"llguidance gave up: {self._matcher.get_error()}"
            raise PenjingError(fact, where=_WHERE, attempt="a simpler form, or a new constraint for each answer")


@functools.cache
def _penalties() -> NDArray[np.float32]:
    """What 8 bits of a mask add to 8 logits [256, 8]: a look-up takes a tenth of the time of unpacking bits."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits == 1, np.float32(0), np.float32(-np.inf))


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        fact = "answers with a form need llguidance"
        raise PenjingError(fact, where=_WHERE, attempt="pip install 'penjing[serve]'") from error
    return llguidance
