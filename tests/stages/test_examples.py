"""Data sets become documents: a task each, some kept apart, all of them with something to predict."""

from __future__ import annotations

import json

import pytest

from penjing.checkpoint import open_checkpoint
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
