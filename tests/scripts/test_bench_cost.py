"""Tables of what was predicted and what came; blocks on a line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_cost.py"


@pytest.fixture(scope="module")
def bench():
    found = importlib.util.spec_from_file_location("bench_cost", SCRIPT)
    module = importlib.util.module_from_spec(found)
    sys.modules["bench_cost"] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


def row(bench, seconds=100.0, peak=1.5e9, **bars):
    predicted = {"seconds": 80.0, "peak_rss_bytes": 1.2e9}
    return bench.Row(bench.Job("GPTQ", "gptq", "model", **bars), predicted, seconds, peak, 1.0, [])


@pytest.mark.parametrize(
    ("minutes", "size", "verdict"),
    [(2, 2e9, "2 min, 2 GB: met"), (1, 2e9, "1 min, 2 GB: **not met**"), (None, 1e9, "1 GB: **not met**")],
)
def test_bars_are_judged_by_what_was_measured(bench, minutes, size, verdict):
    line = bench.table([row(bench, most_minutes=minutes, most_bytes=size)])[-1]
    assert line == f"| GPTQ | 80.0 s | 100.0 s | 0.80 | 1,200 MB | 1,500 MB | 0.80 | {verdict} |"


def test_learned_rounding_is_judged_in_full_and_scaled_in_part(bench):
    part, full = (bench.smollm2_jobs("text", blocks, None, 14)[-1] for blocks in (2, 30))
    assert (part.most_minutes, full.most_minutes) == (None, 40)
    assert full.spec["steps"] == 200
    predicted = {"seconds": 80.0, "peak_rss_bytes": 1.2e9}
    said = bench.notes_of([bench.Row(part, predicted, 48.0, 1, 1.0, [])])
    assert "at most 40 minutes (within the 40" in said  # 48 s of 2 blocks of 30, 60 steps of 200
    assert "beyond the 40" in bench.notes_of([bench.Row(part, predicted, 49.0, 1, 1.0, [])])
    assert "was not run" not in bench.notes_of([bench.Row(full, predicted, 48.0, 1, 1.0, [])])


def test_what_tuning_gained_is_told(bench):
    tuning = bench.smollm2_jobs("text", 2, "learnt", 14)[-2]
    assert (tuning.method, tuning.tuned_minutes, tuning.most_minutes, tuning.most_bytes) == ("kl_tuning", 14, 15, 3e9)
    said = bench.notes_of(
        [bench.Row(tuning, {"seconds": 840.0, "peak_rss_bytes": 1e9}, 850.0, 1, 0.0, [], [1.5, 0.25])]
    )
    assert "1.500 to 0.250 nats" in said


def test_blocks_on_a_line_and_off_it(bench):
    assert bench.line_of([0.0, 10.0, 20.0, 30.0]) == pytest.approx((10.0, 0.0))
    slope, off = bench.line_of([0.0, 10.0, 20.0, 36.0])
    assert slope == pytest.approx(11.8)
    assert off == pytest.approx(2.4 / 11.8)  # the third is the furthest


def test_a_worker_says_what_was_predicted_and_what_came(bench, tiny_model):
    job = bench.Job("GPTQ", "gptq", str(tiny_model("llama").path), (2, 20), spec={"group_size": 4}, blocks=1)
    bench_embed = {"method": "rtn", "bits": 4, "group_size": 4}
    found = bench.work(job, embed=bench_embed)
    assert found.seconds > 0
    assert found.predicted["seconds"] > 0
    assert len(found.at) == 3  # of its three layers one is quantized, all are written
    assert found.at[0] == 0
