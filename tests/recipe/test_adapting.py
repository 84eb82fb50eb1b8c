"""Several methods on one budget: rows that evidence bears out, failures kept, nothing made twice, a picture."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("peft", reason="pip install 'penjing[fit]'")

from penjing import evidence
from penjing.errors import PenjingError
from penjing.measure import fresh
from penjing.recipe import adapting
from penjing.recipe.adapting import Job, compare
from penjing.recipe.tradeoffs import draw_tradeoffs

TRAIN = {"steps": 12, "rate": 1e-2, "length": 64, "rows": 1, "precision": "f32"}


@pytest.fixture
def calls(tmp_path):
    rows = [f"call number {number},{['yes', 'no'][number % 2]}" for number in range(60)]
    (tmp_path / "calls.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return tmp_path / "calls.csv"


@pytest.fixture
def job(talker, calls, tmp_path):
    def make(method, spec=None, **train):
        settings = {"spec": spec or {}, "train": TRAIN | train}
        return Job(model=str(talker), out=str(tmp_path / "c"), data=[str(calls)], method=method, **settings)

    return make


@pytest.fixture
def here(monkeypatch):
    """Jobs in this process: what is compared is the same, only memory is not."""
    done = []

    def run(job, progress):
        done.append(job.method)
        return adapting.run(job, progress or (lambda *step: None))

    monkeypatch.setattr(adapting, "_elsewhere", run)
    return done


def _whole(folder):
    return {str(file): (file.stat().st_ino, file.read_bytes()) for file in folder.rglob("*") if file.is_file()}


def test_rows_are_what_evidence_says_and_nothing_is_made_twice(job, here, tmp_path):
    jobs = [job("lora", {"rank": 2}), job("norms")]
    found = compare(jobs, tmp_path / "c")
    assert here == ["base", "lora", "norms"]
    assert json.loads((tmp_path / "c" / "compare.json").read_text()) == found
    for row in found["methods"]:
        (record,) = evidence.read(tmp_path / "c" / row["method"] / "evidence.jsonl")
        after = record["after"]
        assert row["loss"] == after["loss"] == min(p["loss"] for p in after["training"]["validation"][1:])
        assert row["loss"] < found["base"]["loss"]
        assert (row["trained_parameters"], row["accuracy"]) == (after["trained_parameters"], after["accuracy"])
        assert row["seconds"] > 0 and row["peak_rss_bytes"] > 0  # noqa: PT018
    assert record["before"]["loss"] == pytest.approx(found["base"]["loss"], rel=1e-5)
    assert found["methods"][0]["trained_parameters"] > found["methods"][1]["trained_parameters"] == 5 * 32
    before = {name: _whole(tmp_path / "c" / name) for name in ("lora", "norms")}
    again = compare([*jobs, job("ia3")], tmp_path / "c")
    assert {name: _whole(tmp_path / "c" / name) for name in ("lora", "norms")} == before
    assert again["methods"][:2] == found["methods"]
    assert again["methods"][2]["method"] == "ia3"


def test_a_method_that_fails_is_a_row_and_others_go_on(job, here, tmp_path):
    found = compare([job("lora", rate=1e30), job("norms")], tmp_path / "c")
    bad, good = found["methods"]
    assert bad["method"] == "lora"
    assert bad["failed"]["fact"]
    assert good["loss"] < found["base"]["loss"]
    with pytest.raises(PenjingError):
        compare([job("lora", rate=1e30)], tmp_path / "d")


def test_a_child_with_other_settings_is_replaced_only_by_force(job, here, tmp_path):
    from dataclasses import replace

    compare([job("norms")], tmp_path / "c")
    before = _whole(tmp_path / "c" / "norms")
    other = job("norms", steps=13)
    with pytest.raises(PenjingError, match="already there"):
        compare([other], tmp_path / "c")
    assert _whole(tmp_path / "c" / "norms") == before
    (row,) = compare([replace(other, force=True)], tmp_path / "c")["methods"]
    assert row["steps"] == 13


def test_what_is_wrong_is_said_before_anything_is_trained(job, here, tmp_path):
    from dataclasses import replace

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("mine")
    for jobs, out in (
        ([], "c"),
        ([job("lora"), job("lora")], "c"),
        ([job("magic")], "c"),
        ([job("lora"), job("norms", {"rank": 2})], "c"),
        ([job("lora", epoch=2)], "c"),
        ([replace(job("lora"), validation=0.0)], "c"),
        ([job("lora")], "mine"),
    ):
        with pytest.raises(PenjingError):
            compare(jobs, tmp_path / out)
    assert here == []
    assert not (tmp_path / "c").exists()


def test_killed_it_takes_its_child_with_it_and_goes_on(job, here, tmp_path):
    script = f"""
import sys
from penjing.recipe.adapting import Job, compare
from pathlib import Path
compare([Job(**entry) for entry in {[vars(job("norms")), vars(job("lora", {"rank": 2}, steps=100_000))]!r}],
        Path({str(tmp_path / "c")!r}), progress=lambda what, done, total: print(what, done, flush=True))
"""
    run = [sys.executable, "-W", "ignore", "-c", script]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env=fresh.environment()) as process:
        for line in process.stdout:
            if line.startswith("lora: loss"):
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    locked = tmp_path / "c" / "lora.run"
    assert locked.is_dir()
    before = _whole(tmp_path / "c" / "norms")
    _wait_until_free(locked)
    (of_its_own,) = json.loads((tmp_path / "c" / "compare.json").read_text())["methods"]
    (row,) = compare([job("norms")], tmp_path / "c")["methods"]
    assert here == ["base", "norms"]
    assert row == of_its_own
    assert _whole(tmp_path / "c" / "norms") == before


def test_a_child_that_nobody_waits_for_ends_at_once(job, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "penjing.recipe.adapting"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=fresh.environment(), **pipes) as process:
        process.stdin.write(json.dumps(vars(job("lora", {"rank": 2}, steps=100_000))) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"progress": ["reading", 0, 0]}
        process.stdin.close()
        for _ in process.stdout:  # what it says is still heard: it is not the pipe of its answers that ends it
            pass
        assert process.wait(timeout=60) == 1


def _wait_until_free(folder):
    """The child held it, and notices at once that nobody waits for it any more."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(200):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            else:
                return
        pytest.fail("the child of a killed process is still at work")
    finally:
        os.close(descriptor)


def test_a_process_that_dies_is_a_failure_with_its_last_words(job, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(PenjingError, match="its process failed: exit code 1"):
        adapting._elsewhere(job("lora"), None)


@pytest.mark.parametrize("judged", [True, False])
def test_the_picture(tmp_path, judged):
    pytest.importorskip("matplotlib")
    base = {"loss": 3.0} | ({"accuracy": {"value": 0.1, "low": 0.05, "high": 0.2}} if judged else {})
    rows = [
        {"method": name, "trained_parameters": count, "seconds": count / 10, "peak_rss_bytes": 1e9, **base}
        for name, count in (("lora", 1000), ("ia3", 10), ("full", 100_000))
    ]
    found = {"base": base, "methods": [*rows, {"method": "dora", "failed": {"fact": "x", "where": "", "attempt": ""}}]}
    draw_tradeoffs(found, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for said in ("lora", "ia3", "full", "the base", "100 k", "accuracy" if judged else "loss"):
        assert said in text
    assert "dora" not in text
    with pytest.raises(PenjingError, match="no method was trained"):
        draw_tradeoffs({"base": base, "methods": []}, tmp_path / "b.svg")


def test_preferences_are_compared_by_their_margins(job, here, tmp_path):
    from dataclasses import replace

    rows = [{"prompt": f"is {n} a number", "chosen": "yes sir", "rejected": "no way"} for n in range(40)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    jobs = [replace(job(method, steps=12), data=[str(tmp_path / "p.jsonl")]) for method in ("lora", "bitfit")]
    found = compare(jobs, tmp_path / "c")
    for row in found["methods"]:
        assert row["margin"] > found["base"]["margin"] + 1.0
        assert row["loss"] < found["base"]["loss"] == pytest.approx(0.6931, abs=1e-3)
