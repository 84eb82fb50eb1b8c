"""Text in, windows out: no byte is lost, nothing held out is calibrated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from penjing.data import text
from penjing.data.text import Corpus, Windows
from penjing.errors import PenjingError


def byte_tokenizer(sample: str = "") -> Tokenizer:
    """Byte-level BPE, as most models have; without merges it is one token a byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([sample], trainer)
    return tokenizer


PROSE = "The bonsai stands in a tray.\nIt is old — 盆景 — and small.\n\n" * 20


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Grüße — naïve\r\nTray\rend".encode(encoding))
    named = encoding if encoding == "cp1252" else "utf-8"  # the others say themselves what they are
    assert text.read_text(path, named) == "Grüße — naïve\nTray\nend"


def test_a_byte_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nna\xefve\n")
    with pytest.raises(PenjingError, match=r"not utf-8: byte 0xef at byte 10, line 3") as caught:
        text.read_text(path)
    assert str(path) in caught.value.where
    assert "latin-1" in caught.value.attempt


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "zero.txt").write_bytes(b"a\nb\0c")
    (tmp_path / "empty.txt").write_bytes(b" \n")
    with pytest.raises(PenjingError, match="zero character on line 2"):
        text.read_text(tmp_path / "zero.txt")
    with pytest.raises(PenjingError, match="cannot read"):
        text.read_text(tmp_path / "absent.txt")
    with pytest.raises(PenjingError, match="unknown encoding"):
        text.read_text(tmp_path / "empty.txt", "klingon")
    with pytest.raises(PenjingError, match="no text"):
        text.read_corpus([tmp_path / "empty.txt"])


def test_folders_are_read_by_name(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.rst", "image.png"):
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "z.log").write_text("z")
    found = text.read_corpus([tmp_path / "z.log", tmp_path / "docs"])
    assert found.documents == ("z", "a.md", "b.txt", "sub/c.rst")


def test_digests_tell_documents_apart() -> None:
    assert Corpus(("ab", "c")).digest != Corpus(("a", "bc")).digest
    assert Corpus(("ab", "c")).digest == Corpus(("ab", "c")).digest
    assert Corpus(("盆景", "a")).num_bytes == 7


def test_repeated_paragraphs_are_kept_once() -> None:
    found = text.without_repeats(["one\n\ntwo", "  two\n\n\nthree  \n", "one", ""])
    assert found.documents == ("one\n\ntwo\n", "three\n")


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="ab \n", max_size=300), st.integers(1, 40))
def test_blocks_are_the_document(document: str, size: int) -> None:
    found = text.blocks(document, size)
    assert "".join(found) == document
    assert all(len(block) <= size + 1 for block in found)


def test_blocks_end_with_paragraphs() -> None:
    assert text.blocks("aaaa aaa\n\nbbbb\nbbbb bbb", 12) == ["aaaa aaa\n\n", "bbbb\nbbbb ", "bbb"]


def test_split_parts_cover_the_text_once() -> None:
    corpus = Corpus(tuple(f"document {i} " * (1 + i % 7) for i in range(100)))
    calibration, held_out = text.split(corpus, held_out=0.25, seed=3)
    assert sorted(calibration.documents + held_out.documents) == sorted(corpus.documents)
    assert held_out.num_bytes == pytest.approx(0.25 * corpus.num_bytes, rel=0.1)
    again = text.split(corpus, held_out=0.25, seed=3)
    assert (calibration.digest, held_out.digest) == (again[0].digest, again[1].digest)
    assert text.split(corpus, held_out=0.25, seed=4)[1].digest != held_out.digest


def test_one_long_document_is_split_too() -> None:
    calibration, held_out = text.split(Corpus(("word " * 40_000,)), held_out=0.3)
    assert held_out.num_bytes + calibration.num_bytes == 200_000


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_impossible_fractions(fraction: float) -> None:
    with pytest.raises(PenjingError, match="nothing on one side"):
        text.split(Corpus(("a", "b")), held_out=fraction)


def test_too_little_to_split() -> None:
    with pytest.raises(PenjingError, match="too little text"):
        text.split(Corpus(("a",)))


def test_every_byte_of_text_belongs_to_one_token() -> None:
    tokenizer = byte_tokenizer(PROSE)
    corpus = Corpus((PROSE, "", "ü盆🌳", "x"))
    token_N, size_N = text.tokenize(tokenizer, corpus)
    assert len(token_N) == len(size_N)
    assert size_N.sum() == corpus.num_bytes
    assert (size_N >= 0).all()
    assert tokenizer.decode(token_N.tolist()) == "".join(corpus.documents)


def test_text_that_a_tokenizer_drops_is_counted() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "bb": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    _, size_N = text.tokenize(tokenizer, Corpus(("  a  bb \n", "a")))
    assert size_N.tolist() == [3, 6, 1]


def test_windows_follow_each_other_and_count_the_bytes_they_predict() -> None:
    tokenizer = byte_tokenizer()  # trained on nothing: one token a byte
    found = text.windows(tokenizer, Corpus(("abcdefgh", "ijk")), length=5)
    assert [tokenizer.decode(row) for row in found.tokens_WT.tolist()] == ["abcde", "fghij"]
    assert (found.num_bytes, found.num_predicted) == (8, 8)
    begun = text.windows(tokenizer, Corpus(("abcdefgh", "ijk")), length=5, bos_token_id=999)
    assert begun.tokens_WT[:, 0].tolist() == [999, 999]
    assert [tokenizer.decode(row[1:]) for row in begun.tokens_WT.tolist()] == ["abcd", "efgh"]
    assert (begun.num_bytes, begun.num_predicted) == (8, 8)
    assert found.digest != begun.digest


def test_fewer_windows_are_spread_over_the_text() -> None:
    tokenizer = byte_tokenizer()
    found = text.windows(tokenizer, Corpus(("aabbccddee",)), length=2, max_windows=3)
    assert [tokenizer.decode(row) for row in found.tokens_WT.tolist()] == ["aa", "bb", "dd"]
    assert found.num_bytes == 3


def test_too_little_for_a_window() -> None:
    for corpus, length in ((Corpus(("abc",)), 4), (Corpus(()), 2), (Corpus(("abc",)), 1)):
        with pytest.raises(PenjingError):
            text.windows(byte_tokenizer(), corpus, length=length)


def test_an_unreadable_tokenizer() -> None:
    with pytest.raises(PenjingError, match="unreadable tokenizer"):
        text.load_tokenizer("{}")


def test_a_tokenizer_that_cuts_and_pads_does_not() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=99)
    token_N, _ = text.tokenize(text.load_tokenizer(tokenizer.to_str()), Corpus(("abcdefg",)))
    assert len(token_N) == 7


def as_windows(tokens: np.ndarray, length: int = 50) -> Windows:
    return Windows(tokens.astype(np.int32).reshape(-1, length), 1)


def test_overlap_is_the_share_of_common_ngrams() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (rng.integers(50_000, size=(40, 50)) for _ in range(2))
    assert text.overlap(as_windows(ours), as_windows(theirs)) == 0.0
    theirs[:10] = ours[20:30]
    assert text.overlap(as_windows(ours), as_windows(theirs)) == pytest.approx(0.25)
    assert text.check_disjoint(as_windows(ours), as_windows(theirs), max_overlap=0.25) == 0.25
    with pytest.raises(PenjingError, match=r"25.0% of the held-out"):
        text.check_disjoint(as_windows(ours), as_windows(theirs))
    assert text.overlap(as_windows(ours, 10), as_windows(theirs, 10)) == 0.0  # shorter than an n-gram


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 5))
def test_hashes_are_equal_where_ngrams_are(tokens: list[int], n: int) -> None:
    hash_G = text.ngram_hashes(np.array(tokens, np.int32), n)
    ngrams = [tuple(tokens[i : i + n]) for i in range(max(0, len(tokens) - n + 1))]
    assert len(hash_G) == len(ngrams)
    assert len(set(hash_G.tolist())) == len(set(ngrams))
    assert len(set(zip(hash_G.tolist(), ngrams, strict=True))) == len(set(ngrams))


def test_real_text_from_one_book_overlaps_little(shakespeare: str) -> None:
    tokenizer = byte_tokenizer(shakespeare[:100_000])
    calibration, held_out = text.split(Corpus((shakespeare,)), held_out=0.2)
    parts = [text.windows(tokenizer, part, length=128) for part in (calibration, held_out)]
    text.check_disjoint(*parts)
    with pytest.raises(PenjingError):
        text.check_disjoint(parts[0], text.windows(tokenizer, Corpus((shakespeare,)), length=128))


@pytest.fixture
def shakespeare() -> str:
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tinyshakespeare"
    files = sorted(folder.glob("*.txt"), key=lambda path: -path.stat().st_size) if folder.is_dir() else []
    if not files:
        pytest.skip("../shared/data/tinyshakespeare is not here")
    return text.read_text(files[0])
