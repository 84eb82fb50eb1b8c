"""Parts: the same for the same data, disjoint in content, classes in proportion."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from penjing.data.dataset import open_dataset
from penjing.data.splits import split, whole
from penjing.errors import PenjingError


def classes(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return open_dataset(path)


def test_parts_are_disjoint_stratified_and_the_same_again(tmp_path):
    rows = [(f"text {n}", "rare" if n % 50 == 0 else "common") for n in range(1000)]
    dataset = classes(tmp_path / "a.jsonl", rows)
    parts = split(dataset, validation=0.1, held_out=0.2, seed=3)
    indices = np.concatenate([part.index_N for part in (parts.train, parts.validation, parts.held_out)])
    assert sorted(indices.tolist()) == list(range(1000))
    for part, share in ((parts.validation, 0.1), (parts.held_out, 0.2)):
        counts = Counter(record.labels[0] for record in part.records())
        assert abs(counts["rare"] - 20 * share) <= 1
        assert abs(counts["common"] - 980 * share) <= 1
    again = split(dataset, validation=0.1, held_out=0.2, seed=3)
    assert again.train.digest == parts.train.digest
    assert split(dataset, validation=0.1, held_out=0.2, seed=4).train.digest != parts.train.digest


def test_the_order_of_rows_changes_nothing(tmp_path):
    rows = [(f"text {n}", str(n % 3)) for n in range(60)]
    one, other = classes(tmp_path / "a.jsonl", rows), classes(tmp_path / "b.jsonl", rows[::-1])
    texts = [{record.text for record in split(d).held_out.records()} for d in (one, other)]
    assert texts[0] == texts[1]


def test_repeats_stay_together(tmp_path):
    dataset = classes(tmp_path / "a.jsonl", [(f"text {n % 40}", "x") for n in range(120)])
    parts = split(dataset, validation=0.25, held_out=0.25)
    texts = [{record.text for record in part.records()} for part in (parts.train, parts.validation, parts.held_out)]
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]


def test_many_small_classes_still_have_a_held_out_part(tmp_path):
    dataset = classes(tmp_path / "a.jsonl", [(f"text {n}", str(n // 2)) for n in range(400)])
    parts = split(dataset, validation=0.0, held_out=0.1)
    # one of each class of two is drawn with probability 0.2: 40 of 200, give or take three times 5.7
    assert 23 <= len(parts.held_out) <= 57
    assert {record.labels for record in parts.held_out.records()} <= {record.labels for record in parts.train.records()}


def test_too_few_or_impossible(tmp_path):
    dataset = classes(tmp_path / "a.jsonl", [("one", "x")])
    with pytest.raises(PenjingError, match="too few records"):
        split(dataset)
    with pytest.raises(PenjingError, match="no parts"):
        split(dataset, validation=0.5, held_out=0.5)
    assert len(whole(dataset)) == 1
    assert len(split(dataset, validation=0, held_out=0).train) == 1
