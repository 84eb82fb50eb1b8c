"""A model in use: tokens and text in and out of the engine, with what it remembers between calls.

Session, tokenizer and chat template are opened at first use; what is not packed is packed into a temporary file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing.checkpoint import Checkpoint
from penjing.errors import PenjingError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from penjing.runtime.chat import ChatTemplate, Conversation, Message
    from penjing.runtime.constrain import Vocabulary
    from penjing.runtime.generate import Generation
    from penjing.runtime.prefix_cache import PrefixCache
    from penjing.runtime.session import KvKind, Session


class Talk:
    """What answers with one checkpoint. Nothing is opened before it is asked for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        context: int,
        threads: int | None,
        kv: KvKind,
        prefix_cache: str | Path | None,
        tell: Callable[[str], None] | None,
    ) -> None:
        """context, threads, kv: of the session. prefix_cache: keeps beginnings of prompts; `tell` hears of it."""
        self._checkpoint, self._architecture = checkpoint, checkpoint.architecture
        self._context, self._threads, self._kv = context, threads, kv
        self._session: Session | None = None
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        self._cached: list[int] = []
        self._prefix_cache, self._tell = prefix_cache, tell

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises PenjingError where it came without one."""
        from penjing.data.text import load_tokenizer

        text = self._checkpoint.tokenizer_json
        if text is None:
            raise PenjingError(
                "the model has no tokenizer",
                where=self._checkpoint.name,
                attempt="put its tokenizer.json beside config.json",
            )
        return load_tokenizer(text, where=self._checkpoint.name)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Raises PenjingError where the model came without one."""
        from penjing.runtime.chat import ChatTemplate

        arch = self._architecture
        eos = arch.eos_token_ids[0] if arch.eos_token_ids else None
        return ChatTemplate(self._checkpoint.chat_template, self._token_text("bos_token_id"), self._text_of(eos))

    @property
    def session(self) -> Session:
        """The engine with this model, opened at first use. What is not packed is packed into a temporary file."""
        if self._session is None:
            from penjing.runtime.session import Session

            path = self._checkpoint.path
            packed = path if path.suffix == ".penjing" else self._packed_copy()
            self._session = Session(packed, context=self._context, threads=self._threads, kv=self._kv)
        return self._session

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What forms of answers are made of. Needs penjing[serve]."""
        from penjing.runtime.constrain import Vocabulary

        arch = self._architecture
        return Vocabulary(self.tokenizer.to_str(), arch.vocab_size, arch.eos_token_ids)

    def stream(self, prompt: str, *, max_tokens: int, stop: Sequence[str], **sampling: Any) -> Generation:
        """Pieces of text that continue `prompt`. sampling: what a `Sampler` takes."""
        return self._generate(self.tokenizer.encode(prompt).ids, max_tokens, stop, sampling)

    def stream_chat(
        self, messages: Sequence[Message], *, max_tokens: int, stop: Sequence[str], **sampling: Any
    ) -> Generation:
        """Pieces of the answer to messages."""
        prompt_ids = self.tokenizer.encode(self.chat_template.render(messages), add_special_tokens=False).ids
        return self._generate(prompt_ids, max_tokens, stop, sampling)

    def conversation(self, system: str = "") -> Conversation:
        """A conversation that remembers its turns."""
        from penjing.runtime.chat import Conversation

        return Conversation(
            self.session,
            self.tokenizer,
            self.chat_template,
            eos=self._architecture.eos_token_ids,
            system=system,
            before_prompt=self._restore,
            after_prompt=self._keep,
        )

    def close(self) -> None:
        """Free the engine and the temporary file, if there is one."""
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None
        self._cached.clear()

    def _generate(
        self, prompt_ids: Sequence[int], max_tokens: int, stop: Sequence[str], sampling: Mapping[str, Any]
    ) -> Generation:
        from penjing.runtime.generate import generate
        from penjing.runtime.sampling import Sampler

        held = self._restore(prompt_ids)
        if held is not None:
            self._cached[:] = held
        return generate(
            self.session,
            self.tokenizer,
            prompt_ids,
            max_tokens=max_tokens,
            sampler=Sampler(**sampling),
            stop=stop,
            eos=self._architecture.eos_token_ids,
            cached=self._cached,
            speculate=True,
            after_prompt=self._keep,
        )

    @cached_property
    def _prefixes(self) -> PrefixCache | None:
        from penjing.runtime.prefix_cache import PrefixCache

        return PrefixCache(self._prefix_cache, tell=self._tell) if self._prefix_cache else None

    def _restore(self, prompt_ids: Sequence[int]) -> list[int] | None:
        """What the session holds after the prefix cache gave what it has for a prompt; None: there is no such cache."""
        return self._prefixes.restore(self.session, prompt_ids) if self._prefixes else None

    def _keep(self, evaluated: int) -> None:
        if self._prefixes:
            self._prefixes.keep(self.session, evaluated)

    def _packed_copy(self) -> Path:
        from penjing.stages.pack import pack

        self._unpacked = tempfile.TemporaryDirectory(prefix="penjing-")
        path = Path(self._unpacked.name) / "model.penjing"
        pack(self._checkpoint, path)
        return path

    def _token_text(self, key: str) -> str:
        said = self._checkpoint.config.get(key)
        return self._text_of(self._checkpoint.generation.get(key) if said is None else said)

    def _text_of(self, token: Any) -> str:
        return (self.tokenizer.id_to_token(token) or "") if isinstance(token, int) else ""
