"""Evidence is never lost, never half-read, and tells what the work cost."""

from __future__ import annotations

import json
import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import pytest

from penjing import evidence
from penjing.errors import PenjingError
from penjing.evidence import Evidence


def record(stage: str = "quantize", **fields: object) -> Evidence:
    return Evidence(stage=stage, settings={}, **fields)  # type: ignore[arg-type]


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "evidence.jsonl"
    evidence.append(path, record("quantize"))
    evidence.append(path, record("pack", after={"bytes": 7}, failed="Zeile\nzwei 盆景"))
    assert [entry["stage"] for entry in evidence.read(path)] == ["quantize", "pack"]
    assert evidence.read(path)[1]["failed"] == "Zeile\nzwei 盆景"
    assert evidence.read(path)[1]["after"] == {"bytes": 7}


def test_no_file_is_no_evidence(tmp_path: Path) -> None:
    assert evidence.read(tmp_path / "evidence.jsonl") == []


def test_every_tear_of_the_last_line_is_survived(tmp_path: Path) -> None:
    path = tmp_path / "evidence.jsonl"
    evidence.append(path, record("first"))
    whole = path.read_bytes()
    evidence.append(path, record("盆景"))
    both = path.read_bytes()
    for cut in range(len(whole) + 1, len(both) - 1):
        path.write_bytes(both[:cut])
        with pytest.warns(UserWarning, match="line 2"):
            assert [entry["stage"] for entry in evidence.read(path)] == ["first"]
        evidence.append(path, record("third"))
        with pytest.warns(UserWarning, match="line 2"):
            assert [entry["stage"] for entry in evidence.read(path)] == ["first", "third"]


@pytest.mark.parametrize("line", [b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"stage": "x"', b"null"])
def test_a_line_that_is_no_record_is_skipped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "evidence.jsonl"
    path.write_bytes(line + b"\n")
    evidence.append(path, record())
    with pytest.warns(UserWarning, match="line 1"):
        assert len(evidence.read(path)) == 1


def test_values_that_json_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "evidence.jsonl"
    after = {
        "nan": float("nan"),
        "inf": -np.inf,
        "scalar": np.float32(0.5),
        "count": np.int64(3),
        "path": tmp_path,
        4: (1, 2),
    }
    evidence.append(path, record(after=after))
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["after"] == {
        "nan": "nan",
        "inf": "-inf",
        "scalar": 0.5,
        "count": 3,
        "path": str(tmp_path),
        "4": [1, 2],
    }


def _append_many(path: Path) -> None:
    for _ in range(50):
        evidence.append(path, record("x" * 5000))


def test_writers_side_by_side_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "evidence.jsonl"
    path.touch()
    workers = [multiprocessing.get_context("fork").Process(target=_append_many, args=(path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(evidence.read(path)) == 150


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(PenjingError, match="cannot append"):
        evidence.append(tmp_path / "absent" / "evidence.jsonl", record())


def test_recording_measures_time_and_keeps_what_the_work_found(tmp_path: Path) -> None:
    path = tmp_path / "evidence.jsonl"
    times = iter([10.0, 12.5])
    with evidence.recording("quantize", {"bits": 4}, path=path, parent="p", clock=lambda: next(times)) as work:
        work.child = "c"
        work.after["bytes"] = 9
        with pytest.raises(RuntimeError):
            work.finished()
    found = work.finished()
    assert (found.seconds, found.parent, found.child, found.after, found.failed) == (2.5, "p", "c", {"bytes": 9}, None)
    assert found.device["cores"] >= 1
    assert found.device["memory_bytes"] > 0
    assert evidence.read(path) == [found.to_json()]


@pytest.mark.parametrize("error", [PenjingError("too big", where="here"), KeyboardInterrupt(), ValueError("no")])
def test_failures_are_recorded_and_still_raised(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "evidence.jsonl"
    with pytest.raises(type(error)), evidence.recording("prune", {}, path=path):
        raise error
    assert evidence.read(path)[0]["failed"] == (str(error) or "KeyboardInterrupt")


def test_peak_memory_is_that_of_the_work() -> None:
    size = 96 << 20
    with evidence.recording("outer", {}) as outer:
        block = np.ones(size, np.uint8)
        del block
        with evidence.recording("inner", {}) as inner:
            pass
    outer_bytes, inner_bytes = outer.finished().peak_rss_bytes, inner.finished().peak_rss_bytes
    assert outer_bytes >= size
    if not evidence.reset_peak():
        pytest.skip("this system does not let a process reset its high-water mark")
    assert inner_bytes <= outer_bytes - 0.9 * size
