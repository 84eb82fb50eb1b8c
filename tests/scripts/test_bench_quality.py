"""The bench of quality, small: every row is of a file that was made, and what was made is used again."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from penjing.errors import PenjingError

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import bench_quality
from quality.contest import Size
from quality.page import Row, picture, table


def lines(first, count):
    return "".join(f"{hashlib.sha256(b'%d' % n).hexdigest()}\n" for n in range(first, first + count))


@pytest.fixture
def command(talker, tmp_path):
    for name, first, count in (("calibration", 0, 100), ("held-out", 1000, 40), ("tuning", 2000, 300)):
        (tmp_path / f"{name}.txt").write_text(lines(first, count))
    return [
        "--model", str(talker), "--windows", "2", "--calibration-windows", "4",
        "--calibration", str(tmp_path / "calibration.txt"), "--held-out", str(tmp_path / "held-out.txt"),
        "--folder", str(tmp_path / "made"), "-o", str(tmp_path / "quality.md"),
    ]  # fmt: skip


def test_fits_tuned_files_and_uniform_rounding(command, tmp_path, capsys):
    bench_quality.main([*command, "--sizes", "0.07,0.055:0.02", "--tuning-text", str(tmp_path / "tuning.txt")])
    record = json.loads((tmp_path / "quality.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert {"parent", "penjing fit 0.07 MB", "penjing fit 0.055 MB", "penjing fit 0.055 MB, qat 0.02 min"} <= set(rows)
    assert rows["penjing fit 0.07 MB"]["size_bytes"] <= 70_000
    assert rows["penjing fit 0.055 MB, qat 0.02 min"]["size_bytes"] <= 55_000
    assert any(name.startswith("rtn") for name in rows)
    assert all(row["quality"]["perplexity"] > 0 for row in rows.values())
    assert all(name in (tmp_path / "quality.md").read_text() for name in rows if name != "parent")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").glob("*/fit-*/quantized/*.safetensors")}
    bench_quality.main([*command, "--sizes", "0.07"])
    assert made
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())


def test_a_tuned_file_is_used_again_for_the_same_settings_alone(command, tmp_path):
    tuning = ["--sizes", "0.055:0.02", "--tuning-text", str(tmp_path / "tuning.txt")]

    def tuned(*more):
        bench_quality.main([*command, *tuning, *more])
        (folder,) = (tmp_path / "made").glob("*/fit-*/tuned")
        names = {row["name"] for row in json.loads((tmp_path / "quality.json").read_text())["rows"]}
        return (folder / "evidence.jsonl").read_bytes(), names

    first, names = tuned("--hard", "0.5")
    assert "penjing fit 0.055 MB, qat 0.02 min, hard 0.5" in names
    assert tuned("--hard", "0.5")[0] == first
    second, names = tuned()
    assert "penjing fit 0.055 MB, qat 0.02 min" in names
    assert second != first


def test_text_that_was_judged_on_is_not_learned_from(command, tmp_path):
    with pytest.raises(PenjingError, match="held-out"):
        bench_quality.main([*command, "--sizes", "0.07:1", "--tuning-text", str(tmp_path / "held-out.txt")])


def test_sizes_are_megabytes_and_minutes():
    assert Size.read("48") == Size(48_000_000)
    assert Size.read("33.5:60") == Size(33_500_000, 60.0)


def test_the_table_is_by_size_and_relative_to_the_parent(tmp_path):
    def row(name, size, perplexity):
        return Row(name, size, {"perplexity": perplexity, "kl_to_parent": 0.5, "top1_agreement": 0.25})

    rows = [row("parent", 9_000_000, 20.0), row("small", 1_000_000, 30.0), row("large", 2_000_000, 21.0)]
    large, small = table(rows).splitlines()[2:]
    assert large.startswith("| large | 2.0 | 21.00 | +5.0% | 0.500 | 25.0%")
    assert small.startswith("| small | 1.0 | 30.00 | +50.0%")
    picture([*rows, row("llama.cpp Q4_0", 3_000_000, 5000.0)], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    picture(rows[:1], tmp_path / "alone.png")  # before there is anything to compare
    assert (tmp_path / "alone.png").stat().st_size > 1000
    picture([rows[0], row("near", 1_000_000, 20.5)], tmp_path / "near.svg")
    assert "KL to the parent, nats" in (tmp_path / "near.svg").read_text()
    picture(rows, tmp_path / "far.svg")
    assert "perplexity over the parent's" in (tmp_path / "far.svg").read_text()
