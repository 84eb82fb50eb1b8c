"""Tokenizers out of GGUF metadata: against the tokenizer they were made of, and SentencePiece's rule told slowly."""

from __future__ import annotations

import json
import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from penjing.errors import PenjingError
from penjing.format.gguf_tokenizer import tokenizer_json

TEXTS = [
    "",
    "hello world",
    " leading, trailing ",
    "  two  spaces\n\n\ttabs\r\nx",
    "1234567 89.01 ½ ² 三 ٣٤",
    "naïve café Ünïcödé 日本語テキスト 한국어 😀👩‍👩‍👧",
    "don't I'LL we've 'S",
    "f(x)=x**2 + y_1; // comment\n    return {a: 1};",
    "\u00a0nbsp\u3000ideographic\u200d\ufeff",
    "!!!???...---",
    "a" * 60 + " " * 30 + "\n" * 7,
]


def random_texts(count):
    generator = random.Random(0)
    pool = "aAbB zZ09_ \n\t'\"éß日本😀.,;!?-—\u00a0\u0301٣½ ſ"
    return ["".join(generator.choice(pool) for _ in range(generator.randint(1, 40))) for _ in range(count)]


def trained(pre_tokenizer) -> Tokenizer:
    """A byte-level BPE that has learned some merges, also across digits and punctuation."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, *random_texts(300)], trainer)
    return tokenizer


def byte_level_fields(tokenizer, name, **more):
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [*tokens, "<|im_start|>", "<|im_end|>", "<think>"],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3, 3, 4],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
    } | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


def opened(fields) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json(fields, where="test"))


#: the same cuts, told with other means than the patterns under test
CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


@pytest.mark.parametrize("name", CUTS)
def test_ids_are_those_of_the_tokenizer_it_was_made_of(name):
    original = trained(CUTS[name])
    found = opened(byte_level_fields(original, name))
    for text in [*TEXTS, *random_texts(500)]:
        assert found.encode(text).ids == original.encode(text).ids, text
        assert found.decode(found.encode(text).ids) == text


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("qwen2", "x12345 y", ["x", "1", "2", "3", "4", "5", "Ġy"]),
        ("llama-bpe", "x12345 y", ["x", "123", "45", "Ġy"]),
        ("llama-bpe", "I'LL  go\n\n\nx", ["I", "'LL", "Ġ", "Ġgo", "ĊĊĊ", "x"]),
        ("gpt-2", "I'LL  go12345", ["I", "'", "LL", "Ġ", "Ġgo", "12345"]),
        ("smollm", "go12345", ["go", "1", "2", "3", "4", "5"]),
        ("falcon", "a12345b!?", ["a", "123", "45", "b", "!?"]),
        ("default", "a12345b, c", ["a", "123", "45", "b", ",", "Ġc"]),
    ],
)
def test_words_are_cut_as_the_name_says(name, text, pieces):
    found = opened(byte_level_fields(trained(CUTS["gpt-2"]), name))
    assert [piece for piece, _ in found.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_special_tokens_are_found_in_text_and_put_around_it():
    original = trained(CUTS["gpt-2"])
    fields = byte_level_fields(original, "gpt-2", add_bos_token=True, add_eos_token=True)
    found = opened(fields)
    start, end, think = (found.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>", "<think>"))
    inner = [start, *original.encode("user\nhi").ids, end, *original.encode("\n").ids, think]
    assert found.encode("<|im_start|>user\nhi<|im_end|>\n<think>").ids == [start, *inner, end]
    assert found.encode("<|im_start|>user\nhi<|im_end|>\n<think>", add_special_tokens=False).ids == inner
    assert found.decode(inner) == "user\nhi\n<think>"  # control tokens are not text, the user's own are


@pytest.mark.parametrize(("name", "adds"), [("llama-bpe", True), ("qwen2", False), ("gpt-2", False)])
def test_bos_where_nothing_is_said(name, adds):
    found = opened(byte_level_fields(trained(CUTS["gpt-2"]), name))
    assert (found.encode("a").ids[0] == found.token_to_id("<|im_start|>")) is adds


@pytest.mark.parametrize(("name", "whole"), [("llama-bpe", True), ("qwen2", False)])
def test_a_whole_word_is_looked_up_before_merging(name, whole):
    fields = byte_level_fields(trained(CUTS["gpt-2"]), name, add_bos_token=False)
    fields["tokenizer.ggml.tokens"][-1] = "xyxyxyx"  # no merges lead to it
    fields["tokenizer.ggml.token_type"][-1] = 1
    assert (len(opened(fields).encode("xyxyxyx").ids) == 1) is whole


PIECES = ["▁", *"abcdefghij", "▁a", "ab", "bc", "abc", "cd", "▁ab", "de", "cde", "aa", "▁▁", "hij", "hi", "ij", "é"]


def sentencepiece_fields(**more):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<|user|>"]
    generator = random.Random(3)
    scores = [0.0] * 259 + [-generator.uniform(1, 50) for _ in PIECES] + [0.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [3],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


def sentencepiece_ids(fields, text):
    """The rule: join the neighbours that make the piece of the highest score, leftmost first, until none make one."""
    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    score_of = {token: scores[n] for n, token in enumerate(tokens) if token in PIECES}
    pieces = list(text.replace(" ", "▁"))
    while True:
        joins = [(score_of[a + b], -n) for n, (a, b) in enumerate(zip(pieces, pieces[1:])) if a + b in score_of]  # noqa: B905, RUF007
        if not joins:
            break
        n = -max(joins)[1]
        pieces[n : n + 2] = [pieces[n] + pieces[n + 1]]
    ids = []
    for piece in pieces:
        ids += [tokens.index(piece)] if piece in PIECES else [3 + byte for byte in piece.encode()]
    return ids


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_joins_by_score_and_falls_back_to_bytes(prefix):
    fields = sentencepiece_fields(add_space_prefix=prefix)
    found = opened(fields)
    generator = random.Random(4)
    for _ in range(500):
        text = "".join(generator.choice("abcdefghij  éß日") for _ in range(generator.randint(1, 12)))
        assert found.encode(text).ids == [1, *sentencepiece_ids(fields, " " * prefix + text)], text
        assert found.decode(found.encode(text).ids) == text


def test_sentencepiece_special_tokens():
    fields = sentencepiece_fields(add_bos_token=False, add_eos_token=True, add_space_prefix=False)
    user = fields["tokenizer.ggml.tokens"].index("<|user|>")
    assert opened(fields).encode("ab<|user|>cd").ids == [
        *sentencepiece_ids(fields, "ab"),
        user,
        *sentencepiece_ids(fields, "cd"),
        2,
    ]


def changed(key, value):
    return byte_level_fields(trained(CUTS["gpt-2"]), "gpt-2") | {f"tokenizer.ggml.{key}": value}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (lambda: changed("pre", "tomorrows"), "pre-tokenizer 'tomorrows'"),
        (lambda: changed("model", "t5"), "kind 't5'"),
        (lambda: changed("tokens", None), "no tokens"),
        (lambda: changed("tokens", [1, 2]), "no tokens"),
        (lambda: changed("tokens", ["a", "a"]), "token_type"),
        (lambda: changed("merges", ["a b c d"]), "unreadable tokenizer"),
        (lambda: changed("merges", [5]), "no merges"),
        (lambda: changed("token_type", [1]), "token_type"),
        (lambda: changed("bos_token_id", 10**9) | {"tokenizer.ggml.add_bos_token": True}, "bos_token_id"),
        (lambda: sentencepiece_fields(scores=[1.0]), "scores"),
        (lambda: sentencepiece_fields(tokens=["a"] * 285), "twice"),
    ],
)
def test_what_is_not_known_is_refused(fields, problem):
    with pytest.raises(PenjingError) as caught:
        tokenizer_json(fields(), where="test")
    assert problem in str(caught.value)


def test_a_file_without_tokenizer():
    assert tokenizer_json({}, where="test") is None
