"""Tokenizers learnt from a text: any text comes back; special tokens stand where a model wants them."""

from __future__ import annotations

import pytest

from penjing.data.new_tokenizer import CLS, END, SEP, learn
from penjing.errors import PenjingError

TEXT = "The pine in the tray is old. The tray is older than the pine in it.\n" * 20


@pytest.mark.parametrize("encoder", [False, True])
def test_any_text_comes_back(encoder):
    tokenizer = learn([TEXT], 280, encoder=encoder)
    assert tokenizer.get_vocab_size() == 280
    for text in (TEXT, "盆景 \x07\n\n  é", ""):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert len(tokenizer.encode(TEXT).ids) < len(TEXT) / 2
    assert tokenizer.to_str() == learn([TEXT], 280, encoder=encoder).to_str()


def test_special_tokens():
    assert learn([TEXT], 260).token_to_id(END) == 0
    encoding = learn([TEXT], 280, encoder=True).encode("a", "b")
    assert [encoding.tokens[at] for at in (0, 2, 4)] == [CLS, SEP, SEP]
    assert encoding.type_ids == [0, 0, 0, 1, 1]


def test_impossible_vocabularies():
    with pytest.raises(PenjingError, match="cannot hold every byte"):
        learn([TEXT], 256)
    with pytest.raises(PenjingError, match="the text gives"):
        learn(["ab"], 1000)
