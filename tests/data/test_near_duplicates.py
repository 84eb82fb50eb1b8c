"""Near-duplicates: found above the threshold, not below it, long and short."""

from __future__ import annotations

import json

import pytest

from penjing.data.dataset import open_dataset
from penjing.data.near_duplicates import near_duplicates
from penjing.data.splits import whole

pytest.importorskip("datasketch")

LONG = " ".join(f"word{n} and then" for n in range(40))


def part(path, *texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return whole(open_dataset(path))


def test_near_ones_are_found_with_their_nearest(tmp_path):
    train = part(tmp_path / "a.jsonl", "Where is my new card?", LONG, "Something else entirely", LONG.replace("w", "v"))
    held_out = part(tmp_path / "b.jsonl", "unrelated words here", "where is my new card", LONG + " one more word")
    near = near_duplicates(train, held_out)
    assert [(one.train, one.held_out) for one in near] == [(0, 1), (1, 2)]
    assert near[0].similarity == 1.0
    # 118 three-word shingles, of 121 in the longer text
    assert near[1].similarity == pytest.approx(118 / 121)


def test_a_threshold_is_one(tmp_path):
    train, held_out = part(tmp_path / "a.jsonl", LONG), part(tmp_path / "b.jsonl", LONG + " one more word")
    assert not near_duplicates(train, held_out, threshold=0.99)
