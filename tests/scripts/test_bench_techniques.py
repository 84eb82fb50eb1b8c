"""The bench of techniques, small: a row for each, judged on what was stored."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import bench_techniques
from bench_techniques import Trial, trials


def lines(first, count):
    return "".join(f"{hashlib.sha256(b'%d' % n).hexdigest()}\n" for n in range(first, first + count))


def test_every_technique_has_a_trial():
    from penjing.quant import __path__ as rooms

    files = {path.stem for path in Path(rooms[0]).glob("*.py")} - {"__init__", "kl_tuning", "qat"}
    tried = {trial.method for trial in trials(32)} | {trial.prepared_by for trial in trials(32)}
    assert files <= tried


def test_titles_tell_settings_that_are_not_the_grid():
    grid = {"bits": 3, "group_size": 64}
    assert Trial("gptq", grid | {"levels": "book"}).title == "`gptq` levels=book"
    assert Trial("gptq", grid, own_text=True).title == "`gptq`, calibrated on its own text"
    assert Trial("rtn", grid, "rotate", {"residual": True}).title == "`rotate` residual=True, then `rtn`"


def test_rows_are_of_what_was_stored(talker, tmp_path, monkeypatch):
    for name, first, count in (("calibration", 0, 100), ("held-out", 1000, 40)):
        (tmp_path / f"{name}.txt").write_text(lines(first, count))
    grid = {"bits": 4, "group_size": 32}
    few = [Trial("rtn", grid), Trial("gptq", grid, "rotate", {}), Trial("binary", {"group_size": 32})]
    few += [Trial("gptq", grid, own_text=True)]
    monkeypatch.setattr(bench_techniques, "trials", lambda group_size: few)
    bench_techniques.main([
        "--model", str(talker), "--windows", "2", "--calibration-windows", "4",
        "--calibration", str(tmp_path / "calibration.txt"), "--held-out", str(tmp_path / "held-out.txt"),
        "-o", str(tmp_path / "techniques.md"),
    ])  # fmt: skip
    record = json.loads((tmp_path / "techniques.json").read_text())
    rows = {row["title"]: row for row in record["rows"]}
    assert list(rows) == [trial.title for trial in few]
    assert rows["`rtn`"]["bits_per_weight"] == rows["`rotate`, then `gptq`"]["bits_per_weight"]
    assert rows["`binary`"]["bits_per_weight"] < 2 < rows["`rtn`"]["bits_per_weight"]
    assert len({row["kl"] for row in rows.values()}) == len(rows)
    assert 0 < rows["`rtn`"]["kl"] < rows["`binary`"]["kl"]
    assert all(title in (tmp_path / "techniques.md").read_text() for title in rows)
