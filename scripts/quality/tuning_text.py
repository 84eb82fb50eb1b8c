"""General text to tune on, from public data: web pages, encyclopedia, passages, a book, abstracts.

    python scripts/quality/tuning_text.py ../shared/data OUT --held-out ../shared/data/wikitext2/valid.txt

Documents that share 13 tokens in a row with the held-out text are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from penjing.checkpoint import open_checkpoint
from penjing.data.text import NGRAM, load_tokenizer, ngram_hashes

_PIECE_CHARS = 8000  # of texts that are one long document
_BOOK_CHARS = 800_000  # of one book: more would be most of the whole


def documents(data: Path) -> Iterator[str]:
    for line in (data / "web_and_wiki" / "c4_demo.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["text"]
    yield from pieces((data / "web_and_wiki" / "wiki_demo.txt").read_text(encoding="utf-8"))
    lines = (data / "multiple_choice" / "boolq.jsonl").read_text(encoding="utf-8").splitlines()
    passages = (json.loads(line)["query"].split("\nQuestion")[0].removeprefix("Passage: ") for line in lines)
    yield from dict.fromkeys(passages)
    book = (data / "ml5_texts" / "darwin.txt").read_text(encoding="utf-8", errors="replace")
    yield from pieces(book[:_BOOK_CHARS])
    articles = json.loads((data / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    yield from (" ".join(article["CONTEXTS"]) for article in articles.values())


def pieces(text: str) -> Iterator[str]:
    return (text[start : start + _PIECE_CHARS] for start in range(0, len(text), _PIECE_CHARS))


def hashes(tokenizer: Tokenizer, text: str) -> set[int]:
    token_T = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    return set(ngram_hashes(token_T, NGRAM).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m", help="whose tokens are compared")
    asked = parser.parse_args()
    tokenizer = load_tokenizer(open_checkpoint(asked.model).tokenizer_json or "")
    held_out = hashes(tokenizer, asked.held_out.read_text(encoding="utf-8"))
    kept = [text for text in documents(asked.data) if held_out.isdisjoint(hashes(tokenizer, text))]
    asked.out.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(kept):
        (asked.out / f"{number:05}.txt").write_text(text, encoding="utf-8")
    print(f"{len(kept)} documents, {sum(map(len, kept)) / 1e6:.1f} million characters")


if __name__ == "__main__":
    main()
