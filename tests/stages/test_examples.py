"""Data sets become documents: a task each, some kept apart, all of them with something to predict."""

from __future__ import annotations

import json
import tracemalloc
from itertools import chain

import pytest

from penjing.checkpoint import open_checkpoint
from penjing.data.dataset import LOOKED_AT
from penjing.errors import PenjingError

pytest.importorskip("torch", reason="pip install 'penjing[fit]'")

from penjing.stages.examples import read_examples


def _write(path, count):
    lines = [{"text": f"word {number}", "label": ["yes", "no"][number % 2]} for number in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_task_each_and_nothing_in_two_parts(talker, tmp_path):
    sources = [_write(tmp_path / "mail.jsonl", 40), _write(tmp_path / "notes.jsonl", 20)]
    found = read_examples(open_checkpoint(talker), sources, max_tokens=64, validation=0.25)
    assert list(found.documents) == ["mail", "notes"]
    assert len(found.documents["mail"]) + len(found.documents["notes"]) + len(found.held_out) == 60
    assert abs(len(found.held_out) - 15) <= 4  # rounding, once for each class of each task
    assert all(example.target_T[1:].any() for example in found.held_out)
    assert sorted(file.name for file in found.files) == ["mail.jsonl", "notes.jsonl"]


def test_tasks_of_one_name_are_refused(talker, tmp_path):
    source = _write(tmp_path / "mail.jsonl", 20)
    with pytest.raises(PenjingError, match="two tasks"):
        read_examples(open_checkpoint(talker), [source, source])


def _peak_bytes(parent, path, count):
    path.write_text("".join(json.dumps({"text": f"letter {number} " * 200}) + "\n" for number in range(count)))
    tracemalloc.start()
    found = read_examples(parent, [str(path)], max_tokens=512)
    tokens = sum(len(example.token_T) for example in chain(found.documents["letters"], found.held_out))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return tokens, peak_bytes


def test_data_larger_than_memory(talker, tmp_path):
    """Beyond the rows that are looked at, records go to the disk one at a time."""
    parent, path = open_checkpoint(talker), tmp_path / "letters.jsonl"
    _peak_bytes(parent, path, LOOKED_AT)  # what is loaded once
    tokens, peak_bytes = _peak_bytes(parent, path, LOOKED_AT)
    more_tokens, more_peak_bytes = _peak_bytes(parent, path, 5 * LOOKED_AT)
    assert more_tokens > 4 * tokens
    assert more_peak_bytes - peak_bytes < 0.5 * (more_tokens - tokens)  # held in memory they would take 5 bytes each
