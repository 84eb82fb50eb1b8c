"""The tokenizer inside a GGUF file as the text of a tokenizer.json (Hugging Face `tokenizers`).

Two kinds: "gpt2", byte-level BPE with merges and a named way of cutting text into words; "llama", SentencePiece BPE
with scores and byte fallback. What is not known is refused: a tokenizer that is nearly right makes a model look bad
and nobody knows why. Which name means which pattern is decided in llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from penjing.errors import PenjingError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _modern(digits: str) -> str:
    """The pattern of GPT-4 and all who followed it; they differ in how many digits go together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        rf"\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_EACH_DIGIT: Final = (r"\p{N}", _GPT2)
_PUNCTUATION: Final = r"[\p{P}\$\+<=>\^~\|]+"
#: name of a pre-tokenizer to its patterns; each cuts the pieces that those before it left
_PATTERNS: Final[dict[str, tuple[str, ...]]] = (
    dict.fromkeys(("gpt-2", "olmo", "mpt", "phi-2", "jina-es", "jina-de", "granite-docling"), (_GPT2,))
    | dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "command-r", "exaone", "minerva-7b"), _EACH_DIGIT)
    | dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "dbrx", "smaug-bpe"), (_modern("{1,3}"),))
    | dict.fromkeys(("qwen2", "deepseek-r1-qwen"), (_modern(""),))
    | {
        "default": (_PUNCTUATION, _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
        "falcon": (_PUNCTUATION.replace("]+", "`]+"), _GPT2, r"[0-9][0-9][0-9]"),
    }
)
#: one name for each way of cutting, those that most models have first
PRE_TOKENIZERS: Final = ("smollm", "qwen2", "llama-bpe", "gpt-2", "falcon", "default")
#: those whose models look a whole word up before merging, and that put a bos token first unless told otherwise
_WHOLE_WORDS: Final = ("llama-bpe", "llama3", "llama-v3", "falcon3")


def tokenizer_json(fields: Mapping[str, Any], *, where: str) -> str | None:
    """tokenizer.json from a GGUF file's metadata; None where it has no tokenizer. Raises PenjingError."""
    kind = fields.get("tokenizer.ggml.model")
    if kind is None:
        return None
    if kind not in ("gpt2", "llama"):
        raise PenjingError(
            f"tokenizers of kind {kind!r} are not supported", where=where, attempt="a model with one of gpt2, llama"
        )
    tokens = _strings(fields, "tokens", where)
    kinds = fields.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise _damaged("token_type does not fit its tokens", where)
    if len(set(tokens)) != len(tokens):
        raise _damaged("a token is there twice", where)
    try:
        tokenizer = (
            _byte_level(fields, tokens, where) if kind == "gpt2" else _sentencepiece(fields, tokens, kinds, where)
        )
        _add_tokens(tokenizer, tokens, kinds)
        _add_ends(tokenizer, fields, tokens, kind, where)
        return str(tokenizer.to_str())
    except PenjingError:
        raise
    except Exception as error:  # tokenizers raises plain Exception for what its Rust refuses
        raise _damaged(str(error), where) from error


def _byte_level(fields: Mapping[str, Any], tokens: list[str], where: str) -> Tokenizer:
    name = fields.get("tokenizer.ggml.pre", "default")
    if name not in _PATTERNS:
        raise PenjingError(
            f"the pre-tokenizer {name!r} is not known", where=where, attempt="the Hugging Face folder of this model"
        )
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in _strings(fields, "merges", where))]
    vocab = {token: n for n, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=name in _WHOLE_WORDS))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _PATTERNS[name]]
    # add_space_prefix is for SentencePiece only: llama.cpp does not look at it here
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: Mapping[str, Any], tokens: list[str], kinds: list[Any], where: str) -> Tokenizer:
    scores = fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise _damaged("scores do not fit its tokens", where)
    vocab = {token: n for n, token in enumerate(tokens)}
    mergeable = {token: n for token, n in vocab.items() if kinds[n] in (_NORMAL, _USER_DEFINED, _UNUSED)}
    unknown = next((tokens[n] for n, kind in enumerate(kinds) if kind == _UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(mergeable, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    first: list[Any] = []
    if _flag(fields, "add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend("▁"))
        first = [decoders.Strip(content=" ", left=1, right=0)]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *first]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(vocab: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others; SentencePiece makes the token of the highest score first."""
    found: list[tuple[float, int, str, str]] = []
    for token, n in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((-scores[n], n, left, right))
    found.sort(key=lambda merge: (merge[0], merge[1], vocab[merge[2]], vocab[merge[3]]))
    return [(left, right) for _, _, left, right in found]


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[Any]) -> None:
    """Tokens that are found in a text before anything else is done to it."""
    for kind, special in ((_CONTROL, True), (_UNKNOWN, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, normalized=False, special=special)
            for token, its_kind in zip(tokens, kinds, strict=True)
            if its_kind == kind and token
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)


def _add_ends(tokenizer: Tokenizer, fields: Mapping[str, Any], tokens: list[str], kind: str, where: str) -> None:
    """The bos and eos tokens that the file says are put around every text."""
    bos_first = kind == "llama" or fields.get("tokenizer.ggml.pre") in _WHOLE_WORDS
    around = [
        _end_token(fields, tokens, name, where) if _flag(fields, f"add_{name}_token", default) else None
        for name, default in (("bos", bos_first), ("eos", False))
    ]
    if any(around):
        bos, eos = around
        template = [part for part in (bos and bos[0], "$A", eos and eos[0]) if part]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[end for end in dict.fromkeys(around) if end]
        )


def _end_token(fields: Mapping[str, Any], tokens: list[str], name: str, where: str) -> tuple[str, int] | None:
    token_id = fields.get(f"tokenizer.ggml.{name}_token_id")
    if token_id is None:
        return None
    if type(token_id) is not int or not 0 <= token_id < len(tokens):
        raise _damaged(f"{name}_token_id is {token_id!r}", where)
    return tokens[token_id], token_id


def _flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    value = fields.get(f"tokenizer.ggml.{name}", default)
    return bool(value)


def _strings(fields: Mapping[str, Any], name: str, where: str) -> list[str]:
    value = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _damaged(f"it has no {name}", where)
    return value


def _damaged(problem: str, where: str) -> PenjingError:
    return PenjingError(f"unreadable tokenizer: {problem}", where=where, attempt="convert the model again")
