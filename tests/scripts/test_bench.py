"""The bench's own arithmetic on made-up numbers, and the whole of it once on a tiny model without peers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from speed import check, contest, engine, page, rows  # noqa: E402


def test_contestants_take_turns_and_medians_are_quoted():
    order = []

    def contestant(name, speeds):
        runs = iter(speeds)

        def run():
            order.append(name)
            speed = next(runs)
            return {"prefill_512": 10.0 * speed, "decode": speed, "said": " Paris"}

        return run

    found = contest.contest(
        {"a": contestant("a", [1.0, 9.0, 2.0]), "b": contestant("b", [4.0, 4.0, 4.0])}, 3, lambda text: None
    )
    assert order == ["a", "b"] * 3
    assert (found["a"]["decode"], found["a"]["prefill_512"], found["a"]["said"]) == (2.0, 20.0, " Paris")
    assert found["a"]["spread"] == pytest.approx((5.5 - 1.5) / 2.0)
    assert found["b"]["spread"] == 0.0


def test_a_round_is_a_process_whose_last_line_counts(tmp_path):
    program = tmp_path / "peer.py"
    program.write_text("import json, sys; print('noise'); print(json.dumps({'argv': len(sys.argv)}))")
    assert contest.process([sys.executable, program, "model", "--threads"])() == {"argv": 3}
    program.write_text("raise SystemExit('no model')")
    with pytest.raises(SystemExit, match="no model"):
        contest.process([sys.executable, program, "model"])()


def test_verdicts():
    assert rows.Row("x", 1.5, "×", 1.6, 2.2).verdict == "missed"
    assert rows.Row("x", 1.6, "×", 1.6, 2.2).verdict == "met"
    assert rows.Row("x", 2.2, "×", 1.6, 2.2).verdict == "aim met"
    assert rows.Row("x", 0.3, "s", 0.4, 0.2, less_is_better=True).verdict == "met"
    assert rows.Row("x", 0.5, "s", 0.4, 0.2, less_is_better=True).verdict == "missed"
    assert rows.Row("x", None, "MB", 4, 2).verdict == "not measured"


MINE = {
    "decode": 200.0, "prefill_512": 3000.0, "prefill_2048": 2000.0, "one_thread_decode": 100.0,
    "one_thread_prefill_512": 2000.0, "twice_the_threads_decode": 150.0, "of_read_limit": 0.85, "spread": 0.1,
    "reading_by_threads": 2.0,
}  # fmt: skip
FRESH = {"over_file_mb": 50.0, "first_token_s": 0.15, "wheel_mb": None, "wheel_note": "make wheel first"}


def test_every_row_of_the_issue_is_there_with_its_bar():
    peer = {"decode": 100.0, "prefill_512": 1000.0, "prefill_2048": 1000.0, "spread": 0.0}
    found = {
        "llama.cpp Q4_0": peer,
        "llama.cpp Q8_0": peer | {"decode": 160.0},
        "openvino": peer | {"prefill_512": 1500.0},
    }
    found |= {"ours": MINE | {"together": 4.0}, "eight": MINE}
    peers = ["llama.cpp Q4_0", "llama.cpp Q8_0", "openvino"]
    table = {row.what: row for row in rows.rows(found, {"llama.cpp Q4_0": "ours"}, "eight", peers, FRESH)}
    values = {what: (row.value, row.verdict) for what, row in table.items()}
    assert values["decode, as good as llama.cpp Q4_0"] == (2.0, "met")
    assert values["decode, as good as llama.cpp Q4_K_M"] == (None, "not measured")
    assert values["decode, 8-bit body and head"] == (1.25, "met")
    assert values["prefill 512"] == (2.0, "aim met")  # against the fastest, OpenVINO
    assert values["prefill 2048"] == (2.0, "aim met")
    assert values["decode, of the read limit"] == (85.0, "met")
    assert values["1 → 2 threads, decode"] == (2.0, "aim met")
    assert values["1 → 2 threads, prefill"] == (1.5, "missed")
    assert values["8 sequences together"] == (4.0, "met")
    assert values["4 threads on 2 cores, of 2 threads"] == (75.0, "aim met")
    assert values["memory over the file, context 2048"] == (50.0, "met")
    assert values["import, open, first token"] == (0.15, "aim met")
    assert values["wheel"] == (None, "not measured")
    text = page.bars(list(table.values()))
    assert "| decode, as good as llama.cpp Q4_0 | 2.00× | 1.80× | 2.50× | met |" in text
    assert "| wheel | – | 4.00 MB | 2.00 MB | not measured | make wheel first |" in text


@pytest.mark.parametrize(
    ("reading", "decode", "verdict"),
    [(2.0, 160.0, "missed"), (2.0, 180.0, "met"), (1.3, 130.0, "aim met"), (1.3, 125.0, "met"), (1.3, 123.0, "missed")],
)
def test_two_threads_are_asked_for_no_more_than_bandwidth_allows(reading, decode, verdict):
    row = rows.decode_by_threads(MINE | {"decode": decode, "reading_by_threads": reading}, "ours")
    assert row.verdict == verdict
    assert f"{reading:.2f}×" in row.note


def test_the_read_limit_is_told_of_every_file_of_ours():
    found = {"peer": {"decode": 1.0}, "ours": MINE, "eight": MINE | {"of_read_limit": 0.7}}
    row = rows.of_read_limit(found, "ours")
    assert (row.value, row.verdict, row.note) == (85.0, "met", "ours, eight: 70%")


def test_a_round_of_a_packed_model_is_real(packed_talker):
    found = engine.measure(packed_talker, threads=1, prompts=(8, 16), decode=4, sequences=2)
    assert {"decode", "prefill_8", "prefill_16", "one_thread_prefill_8", "twice_the_threads_decode"} <= found.keys()
    assert all(value > 0 for value in found.values())


@pytest.fixture
def eight_bits(talker, tmp_path):
    from penjing import api

    return api.open(talker).quantize(tmp_path / "q", bits=8, group_size=16).pack(tmp_path / "q.penjing").checkpoint.path


def test_answers_are_held_against_the_reference(packed_talker, eight_bits, monkeypatch):
    assert check.check_packed(packed_talker) < 1
    assert check.check_packed(eight_bits) < 1.6

    class Wrong(check.Decoder):
        def forward(self, tokens):
            return np.roll(super().forward(tokens), 1, axis=0)

    monkeypatch.setattr(check, "Decoder", Wrong)
    for path in (packed_talker, eight_bits):
        with pytest.raises(SystemExit, match="no speed is printed"):
            check.check_packed(path)


def test_a_peers_next_word_must_be_that_of_its_weights(talker):
    from penjing.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(talker)
    with pytest.raises(SystemExit, match="no speed is printed") as refused:
        check.check_said("peer", "certainly not", checkpoint)
    expected = str(refused.value).split(", not ")[1].split(": no speed")[0].strip("'")
    if expected.isprintable() and expected.strip():
        check.check_said("peer", f" {expected}", checkpoint)


def test_the_whole_bench_on_a_tiny_model_without_peers(talker, tmp_path, monkeypatch, capsys):
    import bench
    from speed import models

    monkeypatch.setattr(models, "GROUP", 16)
    rng = np.random.default_rng(0)
    for name in ("calibration", "held-out"):
        (tmp_path / f"{name}.txt").write_text("".join(map(chr, rng.integers(97, 123, 3000))))
    out, nobody = tmp_path / "speed.md", str(tmp_path / "nobody")
    bench.main(
        f"--model {talker} --calibration {tmp_path}/calibration.txt --held-out {tmp_path}/held-out.txt --windows 1 "
        f"--calibration-windows 1 --llamacpp-python {nobody} --openvino-python {nobody} --folder {tmp_path}/made "
        f"--rounds 1 --threads 1 --prompts 8,16 --decode 4 -o {out}".split()
    )
    record = json.loads(out.with_suffix(".json").read_text())
    assert out.read_text() == capsys.readouterr().out.rstrip("\n") + "\n"
    assert record["missing"].keys() == {"llama.cpp Q4_0", "llama.cpp Q4_K_M", "llama.cpp Q8_0", "OpenVINO int8"}
    assert record["found"]["penjing 8 bits"]["decode"] > 0
    verdicts = {row["what"]: row["verdict"] for row in record["rows"]}
    assert verdicts["decode, 8-bit body and head"] == "not measured"
    assert verdicts["import, open, first token"] != "not measured"
    assert record["distance_from_reference"]["penjing 8 bits"] < 1.6
