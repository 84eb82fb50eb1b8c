"""Tokenizers as GGUF has them: read back they cut texts as before, or are refused."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from penjing.errors import PenjingError
from penjing.format.architecture import Architecture
from penjing.format.gguf_metadata import tokenizer_fields
from penjing.format.gguf_tokenizer import _PATTERNS, PRE_TOKENIZERS, tokenizer_json

TEXTS = ["Hello <s>you", "I'll have 12345 x", "naïve  日本", " a\n\n b"]


def architecture(tokenizer: Tokenizer, **changes) -> Architecture:
    size = tokenizer.get_vocab_size() + 3  # an embedding is often larger than its vocabulary
    fields = {"model_type": "llama", "vocab_size": size, "hidden_size": 4, "intermediate_size": 4, "num_layers": 1}
    fields |= {"num_heads": 1, "num_kv_heads": 1, "head_dim": 4, "max_position_embeddings": 8}
    fields |= {"tied": True, "attention_scale": 0.5, "layer_rope": (-1,), "layer_window": (0,)}
    return Architecture(**fields | changes)


def byte_level(cuts) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("H", "e"), ("He", "l"), ("1", "2"), ("Ġ", "Ġ"), ("3", "4")]
    vocab = {token: n for n, token in enumerate([*letters, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.add_tokens(["you"])
    return tokenizer


def read_back(tokenizer: Tokenizer, **changes) -> tuple[Tokenizer, dict]:
    fields = tokenizer_fields(tokenizer.to_str(), architecture(tokenizer, **changes), where="")
    return Tokenizer.from_str(tokenizer_json(fields, where="")), fields


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
@pytest.mark.parametrize("bos", [False, True])
def test_byte_level(pre, bos):
    from tokenizers import Regex

    tokenizer = byte_level([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _PATTERNS[pre]])
    number = tokenizer.token_to_id("<s>")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", number)])
    again, fields = read_back(tokenizer, eos_token_ids=(number, 3))
    for text in TEXTS:
        assert again.encode(text).ids == tokenizer.encode(text).ids
    assert fields["tokenizer.ggml.eos_token_id"] == number
    assert fields["tokenizer.ggml.eot_token_id"] == 3
    assert fields["tokenizer.ggml.add_bos_token"] is bos
    assert fields["tokenizer.ggml.token_type"][number] == 3
    assert len(fields["tokenizer.ggml.tokens"]) == tokenizer.get_vocab_size() + 3


def test_a_way_of_cutting_without_a_name_is_refused():
    cuts = [pre_tokenizers.Split("e", "removed")]
    with pytest.raises(PenjingError, match="no name for how this tokenizer cuts"):
        read_back(byte_level(cuts))


def test_sentencepiece():
    letters = ["<unk>", "<s>", *(f"<0x{n:02X}>" for n in range(256)), *"▁abHelo"]
    merges = [("l", "l"), ("H", "e"), ("He", "ll"), ("▁", "Hell"), ("l", "o")]
    vocab = {token: n for n, token in enumerate([*letters, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<s>"])
    again, fields = read_back(tokenizer)
    assert fields["tokenizer.ggml.model"] == "llama"
    for text in TEXTS:
        assert again.encode(text).ids == tokenizer.encode(text).ids


def test_other_kinds_of_tokenizer_are_refused():
    letters = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(PenjingError, match="a BPE tokenizer without merges"):
        tokenizer_fields(letters.to_str(), architecture(letters), where="")
    text = json.dumps(json.loads(byte_level([]).to_str()) | {"model": {"type": "Unigram"}})
    with pytest.raises(PenjingError, match="a Unigram tokenizer is not known to GGUF"):
        tokenizer_fields(text, architecture(byte_level([])), where="")
