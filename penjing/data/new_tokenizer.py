"""A tokenizer learnt from a text: byte-level BPE, so that no text is beyond it (arXiv:1508.07909, as in GPT-2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from penjing.errors import PenjingError

#: begins a text and ends it
END: Final = "<|endoftext|>"
#: of an encoder: padding, beginning, end of a part, what is to be guessed
PAD, CLS, SEP, MASK = "[PAD]", "[CLS]", "[SEP]", "[MASK]"
BYTES: Final = 256


def learn(texts: Iterable[str], vocab_size: int, *, encoder: bool = False) -> Tokenizer:
    """A tokenizer of `vocab_size` tokens: special ones, bytes, and joined bytes in order of their frequency.

    Raises PenjingError where the text is too poor for so many.
    """
    special = [PAD, CLS, SEP, MASK] if encoder else [END]
    if vocab_size < BYTES + len(special):
        raise PenjingError(f"a vocabulary of {vocab_size} cannot hold every byte", attempt=f"{BYTES + len(special)}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        found = tokenizer.get_vocab_size()
        raise PenjingError(
            f"the text gives {found} tokens, not {vocab_size}", attempt=f"more text, or a vocabulary of {found}"
        )
    if encoder:
        ids = [(name, tokenizer.token_to_id(name)) for name in (CLS, SEP)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A {SEP}", pair=f"{CLS} $A {SEP} $B:1 {SEP}:1", special_tokens=ids
        )
    return tokenizer
