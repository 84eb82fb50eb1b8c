"""The bench's own arithmetic: turns, medians, ratios. Contestants are made up: a test times nothing."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", ROOT / "scripts" / "bench.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contestants_take_turns_and_medians_are_quoted(bench):
    order = []

    def contestant(name, speeds):
        runs = iter(speeds)

        def run():
            order.append(name)
            speed = next(runs)
            return {"prefill_tokens_per_s": 10.0 * speed, "decode_tokens_per_s": speed}

        return run

    found = bench.contest({"a": contestant("a", [1.0, 9.0, 2.0]), "b": contestant("b", [4.0, 4.0, 4.0])}, rounds=3)
    assert order == ["a", "b"] * 3
    assert found["a"]["decode_tokens_per_s"] == 2.0
    assert found["a"]["prefill_tokens_per_s"] == 20.0
    assert found["a"]["spread"] == pytest.approx((5.5 - 1.5) / 2.0)
    assert found["b"]["spread"] == 0.0


def test_ratios_are_to_the_baseline(bench):
    row = {"prefill_tokens_per_s": 100.0, "decode_tokens_per_s": 50.0, "spread": 0.1}
    rows = {"peer": row, "ours": {"prefill_tokens_per_s": 300.0, "decode_tokens_per_s": 75.0, "spread": 0.0}}
    rows["ours"]["decode_limit_fraction"] = 0.8
    lines = bench.table(rows, {"peer": 2_000_000, "ours": 1_000_000}, "peer").splitlines()
    assert lines[2] == "| peer | 2.0 | 100 | 1.00 | 50 | 1.00 | 10% |  |"
    assert lines[3] == "| ours | 1.0 | 300 | 3.00 | 75 | 1.50 | 0% | 80% |"


def test_a_round_of_a_packed_model_is_real(bench, packed_talker):
    found = bench.penjing(packed_talker, threads=1)()
    assert all(found[name] > 0 for name in bench.QUANTITIES)


def test_a_peer_is_a_process_whose_last_line_counts(bench, tmp_path, monkeypatch):
    (tmp_path / "llamacpp.py").write_text(
        "import json, sys; print('noise'); print(json.dumps({'argv': len(sys.argv)}))"
    )
    monkeypatch.setattr(bench, "PEERS", tmp_path)
    assert bench.llamacpp(sys.executable, Path("m.gguf"), threads=2)() == json.loads('{"argv": 4}')
