"""Text files to windows of tokens, and calibration and held-out parts that share nothing.

Shapes: W windows, T tokens a window, N tokens of a stream, G n-grams.
"""

from __future__ import annotations

import codecs
import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from penjing.errors import PenjingError

SELF = "self"  # instead of a file: what the model writes itself
SUFFIXES = (".txt", ".md", ".rst")
#: longer documents are cut at paragraphs, so that one book still has a calibration and a held-out part
BLOCK_CHARS = 1 << 14
#: held-out n-grams also seen in calibration; quotations, licences and idioms stay far below it
MAX_OVERLAP = 0.05
NGRAM = 13  # as in GPT-3's contamination study (arXiv:2005.14165, appendix C)

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, which begins alike
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Corpus:
    """Documents in order."""

    documents: tuple[str, ...]

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of UTF-8, without anything between documents."""
        return sum(len(document.encode()) for document in self.documents)

    @cached_property
    def digest(self) -> str:
        """sha256 over the documents and where each ends."""
        found = hashlib.sha256()
        for document in self.documents:
            content = document.encode()
            found.update(len(content).to_bytes(8, "little"))
            found.update(content)
        return found.hexdigest()


@dataclass(frozen=True)
class Windows:
    """Token windows without overlap. The first token of a window is context only: it is not predicted."""

    tokens_WT: NDArray[np.int32]  # noqa: N815
    num_bytes: int  # of the text that the predicted tokens stand for, in UTF-8

    @cached_property
    def digest(self) -> str:
        found = hashlib.sha256(f"{self.tokens_WT.shape} {self.num_bytes}\n".encode())
        found.update(np.ascontiguousarray(self.tokens_WT, dtype="<i4").tobytes())
        return found.hexdigest()

    @property
    def num_predicted(self) -> int:
        return self.tokens_WT[:, 1:].size


def bom_encoding(content: bytes) -> str | None:
    """The encoding that a byte order mark at the beginning names."""
    return next((name for bom, name in _BOMS if content.startswith(bom)), None)


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, newlines as `\\n`. A byte order mark is believed over `encoding`.

    Raises PenjingError, naming line and byte, for bytes that are not text in that encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PenjingError(f"cannot read text: {error.strerror or error}", where=str(path)) from error
    encoding = bom_encoding(content) or encoding
    try:
        text = content.decode(encoding)
    except LookupError as error:
        raise PenjingError(
            f"unknown encoding {encoding!r}", where=str(path), attempt="utf-8, latin-1, cp1252, …"
        ) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PenjingError(
            f"not {error.encoding}: byte 0x{content[error.start]:02x} at byte {error.start}, line {line}",
            where=str(path),
            attempt="name its encoding (latin-1, cp1252, utf-16, …) or convert it with iconv",
        ) from error
    zero = text.find("\0")
    if zero >= 0:
        line = text.count("\n", 0, zero) + 1
        raise PenjingError(
            f"not text: a zero character on line {line}", where=str(path), attempt="a text file, or encoding utf-16"
        )
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def as_corpus(text: str | Path | Corpus) -> Corpus:
    """A corpus as it is, a file or folder read."""
    return text if isinstance(text, Corpus) else read_corpus([Path(text)])


def read_corpus(paths: Iterable[Path], encoding: str = "utf-8") -> Corpus:
    """One document a file, in the order given; of a folder, its text files by name, at any depth."""
    documents = []
    for path in paths:
        files = sorted(found for found in path.rglob("*") if found.suffix in SUFFIXES) if path.is_dir() else [path]
        documents += [read_text(file, encoding) for file in files]
    corpus = Corpus(tuple(document for document in documents if document.strip()))
    if not corpus.documents:
        where = ", ".join(str(path) for path in paths)
        raise PenjingError(
            "no text", where=where, attempt=f"files that are not empty; of folders {', '.join(SUFFIXES)}"
        )
    return corpus


def without_repeats(documents: Iterable[str]) -> Corpus:
    """Drop every paragraph that an earlier one repeats, and what is then empty.

    Sentences that stand in several documents would put held-out text into calibration.
    """
    seen: set[str] = set()
    kept = []
    for document in documents:
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", document):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                paragraphs.append(paragraph.rstrip())
        if paragraphs:
            kept.append("\n\n".join(paragraphs) + "\n")
    return Corpus(tuple(kept))


def blocks(document: str, max_chars: int = BLOCK_CHARS) -> list[str]:
    """Cut a document after paragraphs, else lines, else anywhere; joined, the blocks are the document."""
    found = []
    start = 0
    while len(document) - start > max_chars:
        end = start + max_chars
        for separator in ("\n\n", "\n", " "):
            at = document.rfind(separator, start + max_chars // 2, end)
            if at >= 0:
                end = at + len(separator)
                break
        found.append(document[start:end])
        start = end
    return [*found, document[start:]]


def split(corpus: Corpus, *, held_out: float = 0.2, seed: int = 0) -> tuple[Corpus, Corpus]:
    """Calibration and held-out parts, by whole documents (long ones by blocks); `held_out` is a fraction of the text.

    The same corpus, fraction and seed give the same parts. Both are shuffled: a prefix of either is a fair sample.
    Raises PenjingError where there is too little text for two parts.
    """
    if not 0 < held_out < 1:
        raise PenjingError(f"a held-out fraction of {held_out} leaves nothing on one side", attempt="0.2")
    pieces = [piece for document in corpus.documents for piece in blocks(document)]
    random.Random(seed).shuffle(pieces)
    wanted = held_out * sum(map(len, pieces))
    count, taken = 0, 0
    while count < len(pieces) and taken < wanted:
        taken += len(pieces[count])
        count += 1
    if not 0 < count < len(pieces):
        raise PenjingError(
            "too little text to keep some of it held out",
            where=f"{len(corpus.documents)} documents, {corpus.num_bytes} bytes",
            attempt=f"at least a few documents, or {4 * BLOCK_CHARS} bytes of text",
        )
    return Corpus(tuple(pieces[count:])), Corpus(tuple(pieces[:count]))


def load_tokenizer(tokenizer_json: str, *, where: str = "tokenizer.json") -> Tokenizer:
    """A tokenizer that neither cuts nor pads."""
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise PenjingError(
            f"unreadable tokenizer: {error}", where=where, attempt="the model's own tokenizer.json"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenize(tokenizer: Tokenizer, corpus: Corpus) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All tokens in order, no special ones, and how many bytes of text each stands for.

    Text that a tokenizer drops counts with the token after it; a character of several tokens with its first.
    """
    tokens, sizes = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for start in range(0, len(corpus.documents), 64):  # a batch bounds the memory of offsets
        batch = corpus.documents[start : start + 64]
        for document, encoding in zip(
            batch, tokenizer.encode_batch(list(batch), add_special_tokens=False), strict=True
        ):
            if not encoding.ids:
                continue
            tokens.append(np.array(encoding.ids, np.int32))
            end_char_N = np.maximum.accumulate(np.array(encoding.offsets, np.int64)[:, 1])
            end_char_N[-1] = len(document)
            sizes.append(np.diff(_byte_offsets(document)[end_char_N], prepend=0))
    return np.concatenate(tokens), np.concatenate(sizes)


def _byte_offsets(text: str) -> NDArray[np.int64]:
    """Where each character, and the end, lies in the UTF-8 of `text`."""
    content = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    width = 1 + (content >= 0x80).astype(np.int64) + (content >= 0x800) + (content >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(width)])


def windows(
    tokenizer: Tokenizer,
    corpus: Corpus,
    *,
    length: int,
    max_windows: int | None = None,
    bos_token_id: int | None = None,
) -> Windows:
    """Cut the tokens of a corpus into windows; what does not fill one is left out.

    `bos_token_id` begins every window where given, for models trained to always see it. Of more than `max_windows`,
    evenly spaced ones are taken. Raises PenjingError where the text does not fill one window.
    """
    if length < 2:
        raise PenjingError(f"a window of {length} tokens predicts nothing", attempt="512")
    token_N, size_N = tokenize(tokenizer, corpus)
    step = length if bos_token_id is None else length - 1
    count = len(token_N) // step
    if count == 0 or max_windows == 0:
        raise PenjingError(
            f"the text has {len(token_N)} tokens: not one window of {length}",
            where=f"{len(corpus.documents)} documents, {corpus.num_bytes} bytes",
            attempt="more text or shorter windows",
        )
    token_WT = token_N[: count * step].reshape(count, step)
    size_WT = size_N[: count * step].reshape(count, step)
    if max_windows is not None and count > max_windows:
        chosen = np.arange(max_windows) * count // max_windows
        token_WT, size_WT = token_WT[chosen], size_WT[chosen]
    if bos_token_id is None:
        return Windows(token_WT, int(size_WT[:, 1:].sum()))
    bos_W1 = np.full((len(token_WT), 1), bos_token_id, np.int32)
    return Windows(np.concatenate([bos_W1, token_WT], axis=1), int(size_WT.sum()))


def ngram_hashes(token_N: NDArray[np.int32], n: int = NGRAM) -> NDArray[np.uint64]:
    """64-bit hashes of all n-grams, one at each position; none where there are fewer than n tokens."""
    mixed_N = token_N.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finalizer
        mixed_N = (mixed_N ^ (mixed_N >> np.uint64(shift))) * np.uint64(factor)
    count = max(0, len(mixed_N) - n + 1)
    hash_G = np.zeros(count, np.uint64)
    for offset in range(n):
        hash_G = hash_G * np.uint64(0xD1342543DE82EF95) + mixed_N[offset : offset + count]
    return hash_G


def overlap(calibration: Windows, held_out: Windows, n: int = NGRAM) -> float:
    """Fraction of held-out n-grams that calibration also holds, 0 to 1. Windows of a bos count without it."""
    seen_G = np.unique(np.concatenate([ngram_hashes(token_T, n) for token_T in calibration.tokens_WT[:, 1:]]))
    held_out_G = np.concatenate([ngram_hashes(token_T, n) for token_T in held_out.tokens_WT[:, 1:]])
    return float(np.isin(held_out_G, seen_G).mean()) if len(held_out_G) else 0.0


def check_disjoint(calibration: Windows, held_out: Windows, max_overlap: float = MAX_OVERLAP) -> float:
    """The overlap, where it is at most `max_overlap`, else PenjingError: such a quality is learnt by heart."""
    found = overlap(calibration, held_out)
    if found > max_overlap:
        raise PenjingError(
            f"{found:.1%} of the held-out text ({NGRAM} tokens in a row) also stands in the calibration text",
            where=f"at most {max_overlap:.0%} is accepted",
            attempt="drop repeated documents, or name separate calibration and held-out files",
        )
    return found
