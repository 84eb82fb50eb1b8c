"""Records to examples: tokens as the model will see them, and which of them it is to learn.

A conversation becomes the text of the model's own chat template, in which only the answers are targets, with the mark
that ends each. Text is a target as a whole. Nothing is cut silently: an example says how many tokens it left out.

Shapes: T tokens of an example.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from penjing.data.records import Message, Record
from penjing.data.text import load_tokenizer
from penjing.errors import PenjingError
from penjing.runtime.chat import ChatTemplate

if TYPE_CHECKING:
    from penjing.checkpoint import Checkpoint

Span = tuple[int, int]
_SPECIAL = re.compile(r"\s*(<[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\])")


class Template(Protocol):
    """The part of `runtime.chat.ChatTemplate` that is used here."""

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = ...) -> str: ...


@dataclass(frozen=True)
class Example:
    """token_T, and target_T: the tokens to predict from those before them. left_out: tokens that did not fit."""

    token_T: NDArray[np.int32]  # noqa: N815
    target_T: NDArray[np.bool_]  # noqa: N815
    label: int | None = None
    left_out: int = 0


@dataclass(frozen=True)
class Plain:
    """For models without a chat template: what is said, separated by empty lines, every answer ended by `eos`."""

    eos: str = ""

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        said = [m["content"] + (self.eos if m["role"] == "assistant" else "\n\n") for m in messages]
        return "".join(said)


@dataclass(frozen=True)
class Codec:
    """What a model needs to read records. eos: the text of the token that ends an answer."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    eos: str

    def examples(self, record: Record, *, max_tokens: int, **settings: Any) -> Iterator[Example]:
        """See `encode_all`."""
        return encode_all(record, self.tokenizer, self.template, max_tokens=max_tokens, eos=self.eos, **settings)


def codec(checkpoint: Checkpoint) -> Codec:
    """Of a model; without a template where it has none. Raises PenjingError where it has no tokenizer."""
    if checkpoint.tokenizer_json is None:
        raise PenjingError("the model has no tokenizer", where=checkpoint.name, attempt="put its tokenizer.json there")
    tokenizer = load_tokenizer(checkpoint.tokenizer_json, where=checkpoint.name)
    arch = checkpoint.architecture
    eos = (tokenizer.id_to_token(arch.eos_token_ids[0]) or "") if arch.eos_token_ids else ""
    named = checkpoint.config.get("bos_token_id", checkpoint.generation.get("bos_token_id"))
    bos = (tokenizer.id_to_token(named) or "") if isinstance(named, int) else ""
    template = ChatTemplate(checkpoint.chat_template, bos, eos) if checkpoint.chat_template else None
    return Codec(tokenizer, template, eos)


def encode(
    record: Record,
    tokenizer: Tokenizer,
    chat_template: Template | None,
    *,
    max_tokens: int,
    eos: str = "",
    question: str = "{text}",
    label: int | None = None,
) -> Example:
    """One example of at most `max_tokens` tokens.

    eos: the token that ends a text, or an answer where there is no template. question: how a text to classify is asked
    about; its labels are the answer. What does not fit is cut from the middle of the longest message that is no answer,
    down to half of `max_tokens`, then from the end. Of a preference, this is the chosen answer; see `preference`. Of a
    pair, its first text.
    """
    if max_tokens < 2:
        raise PenjingError(f"examples of {max_tokens} tokens teach nothing", attempt="512")
    if record.kind in ("text", "pairs"):
        whole = _text(record.text, tokenizer, eos if record.kind == "text" else "")
        return _cut(replace(whole, label=label), max_tokens)
    found = _fitted(messages_of(record, question), tokenizer, chat_template or Plain(eos), max_tokens)
    return replace(found, label=label)


def encode_all(
    record: Record,
    tokenizer: Tokenizer,
    chat_template: Template | None,
    *,
    max_tokens: int,
    eos: str = "",
    question: str = "{text}",
    label: int | None = None,
) -> Iterator[Example]:
    """As `encode`, but a text that does not fit becomes several examples, of which nothing is left out."""
    if record.kind != "text":
        rest = {"eos": eos, "question": question}
        yield encode(record, tokenizer, chat_template, max_tokens=max_tokens, label=label, **rest)
        return
    whole = _text(record.text, tokenizer, eos)
    for start in range(0, len(whole.token_T), max_tokens):
        token_T = whole.token_T[start : start + max_tokens]
        if len(token_T) > 1:
            yield Example(token_T, np.arange(len(token_T)) > 0, label)


def preference(
    record: Record, tokenizer: Tokenizer, chat_template: Template | None, *, max_tokens: int, eos: str = ""
) -> tuple[Example, Example]:
    """The same prompt with the chosen and with the rejected answer."""
    template = chat_template or Plain(eos)
    answers = (record.chosen, record.rejected)
    both = [[*record.messages, {"role": "assistant", "content": answer}] for answer in answers]
    chosen, rejected = (_fitted(messages, tokenizer, template, max_tokens) for messages in both)
    return chosen, rejected


def pair(record: Record, tokenizer: Tokenizer, *, max_tokens: int) -> tuple[Example, ...]:
    """The texts of a pair, with its negative if it has one, and the special tokens that the tokenizer puts around."""
    texts = [text for text in (record.text, record.second, record.negative) if text]
    ids = [tokenizer.encode(text).ids for text in texts]
    return tuple(_cut(Example(np.array(i, np.int32), np.zeros(len(i), np.bool_)), max_tokens) for i in ids)


def messages_of(record: Record, question: str = "{text}") -> list[Message]:
    """The conversation that a record stands for."""
    if record.kind == "classification":
        asked = question.replace("{text}", record.text)
        answer = ", ".join(record.labels)
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    if record.kind == "preference":
        return [*record.messages, {"role": "assistant", "content": record.chosen}]
    return list(record.messages)


def answer_spans(messages: Sequence[Message], template: Template) -> tuple[str, list[Span]]:
    """The rendered conversation, and from where to where in it each answer goes, with the mark that ends it.

    An answer is what rendering one message more adds. Some templates change earlier turns as a conversation goes on
    (they take out old thoughts); there the answer is looked up in the whole. Raises PenjingError where it is not in it.
    """
    whole = template.render(messages, add_generation_prompt=False)
    spans, at = [], 0
    for number, message in enumerate(messages):
        content = message["content"]
        if message["role"] != "assistant":
            continue
        before = template.render(messages[:number], add_generation_prompt=True) if number else ""
        after = template.render(messages[: number + 1], add_generation_prompt=False)
        if number and whole.startswith(after) and after.startswith(before):
            span = (len(before), len(before) + len(after[len(before) :].rstrip()))
        else:
            span = _looked_up(whole, content, at)
        spans.append(span)
        at = span[1]
    return whole, spans


def _looked_up(whole: str, content: str, at: int) -> Span:
    for said in (content, content.strip(), content.rsplit("</think>", 1)[-1].strip()):
        start = whole.find(said, at)
        if said and start >= 0:
            end = start + len(said)
            mark = _SPECIAL.match(whole, end)
            return start, mark.end() if mark else end
    raise PenjingError(
        "the chat template changes this answer, so it cannot be told from the rest",
        where=content[:60],
        attempt="a template that renders answers as they are",
    )


def _fitted(messages: list[Message], tokenizer: Tokenizer, template: Template, max_tokens: int) -> Example:
    found = _conversation(messages, tokenizer, template)
    total = len(found.token_T)
    for _ in range(4):  # cutting text may change how the rest is tokenized by a token or two
        excess = len(found.token_T) - max_tokens
        longest = max((m for m in messages if m["role"] != "assistant"), key=lambda m: len(m["content"]), default=None)
        if excess <= 0 or longest is None:
            break
        shorter = longest | {"content": _shortened(longest["content"], tokenizer, excess, max_tokens // 2)}
        if shorter == longest:
            break
        messages = [shorter if message is longest else message for message in messages]
        found = _conversation(messages, tokenizer, template)
    cut = _cut(found, max_tokens)
    return replace(cut, left_out=total - len(cut.token_T))


def _shortened(text: str, tokenizer: Tokenizer, excess: int, least: int) -> str:
    """A text without `excess` tokens of its middle, but with `least` at least: questions stand first or last."""
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    keep = max(least, len(offsets) - excess)
    if keep >= len(offsets):
        return text
    head, tail = (keep + 1) // 2, keep // 2
    return text[: offsets[head][0]].rstrip() + (text[offsets[len(offsets) - tail][0] :] if tail else "")


def _conversation(messages: Sequence[Message], tokenizer: Tokenizer, template: Template) -> Example:
    whole, spans = answer_spans(messages, template)
    encoding = tokenizer.encode(whole, add_special_tokens=False)
    start_T, end_T = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
    if any(bool(np.any((start_T < start) & (end_T > start))) for start, _ in spans):
        return _in_pieces(whole, spans, tokenizer)
    target_T = np.zeros(len(start_T), np.bool_)
    for start, end in spans:
        target_T |= (start_T >= start) & (start_T < end) & (end_T > start)
    target_T[:1] = False
    return Example(np.array(encoding.ids, np.int32), target_T)


def _in_pieces(whole: str, spans: Sequence[Span], tokenizer: Tokenizer) -> Example:
    """Prompts and answers encoded apart, where a token would join the end of one to the beginning of the other: when
    the model answers, the prompt has ended."""
    cuts = sorted({0, len(whole), *(edge for span in spans for edge in span)})
    ids, targets = [], []
    for start, end in pairwise(cuts):
        piece = tokenizer.encode(whole[start:end], add_special_tokens=False).ids
        ids += piece
        targets += [(start, end) in spans] * len(piece)
    target_T = np.array(targets, np.bool_)
    target_T[:1] = False
    return Example(np.array(ids, np.int32), target_T)


def _text(text: str, tokenizer: Tokenizer, eos: str) -> Example:
    ids = tokenizer.encode(text).ids
    end = tokenizer.token_to_id(eos) if eos else None
    if end is not None and ids[-1:] != [end]:
        ids.append(end)
    return Example(np.array(ids, np.int32), np.arange(len(ids)) > 0)


def _cut(example: Example, max_tokens: int) -> Example:
    left_out = max(0, len(example.token_T) - max_tokens)
    return replace(
        example, token_T=example.token_T[:max_tokens], target_T=example.target_T[:max_tokens], left_out=left_out
    )
