"""Texts of benches: files and folders of them as documents, and the windows that are calibrated and judged on."""

from __future__ import annotations

import json
from pathlib import Path

from penjing.checkpoint import Checkpoint
from penjing.data.text import Corpus, Windows, blocks, check_disjoint, read_corpus
from penjing.measure.compare import WINDOW, held_out_windows


def read_texts(path: Path) -> Corpus:
    """Text files, and the "text" of each line of .jsonl files; long documents cut so that a sample sees all of them."""
    lines = [line for file in sorted(path.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    documents = [json.loads(line)["text"] for line in lines]
    plain = read_corpus([path] if path.is_file() else sorted(path.glob("*.txt")))
    return Corpus((*documents, *(block for document in plain.documents for block in blocks(document))))


def two_texts(
    parent: Checkpoint, calibration: Path, calibration_windows: int, held_out: Path, windows: int
) -> tuple[Windows, Windows]:
    """Windows to calibrate on, and windows to judge on. PenjingError where the two texts overlap."""
    calibrating = held_out_windows(parent, read_texts(calibration), WINDOW, calibration_windows)
    judging = held_out_windows(parent, read_texts(held_out), WINDOW, windows)
    check_disjoint(calibrating, judging)
    return calibrating, judging
