"""Texts of benches: files and folders of them as documents."""

from __future__ import annotations

import json
from pathlib import Path

from penjing.data.text import Corpus, blocks, read_corpus


def read_texts(path: Path) -> Corpus:
    """Text files, and the "text" of each line of .jsonl files; long documents cut so that a sample sees all of them."""
    lines = [line for file in sorted(path.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    documents = [json.loads(line)["text"] for line in lines]
    plain = read_corpus([path] if path.is_file() else sorted(path.glob("*.txt")))
    return Corpus((*documents, *(block for document in plain.documents for block in blocks(document))))
