"""The bench of training, small: real processes, one after the other; nothing is timed for its speed."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_train", ROOT / "scripts" / "bench_train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_train"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_both_train_alike(bench, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=67, **sizes)).save_pretrained(tmp_path / "model")
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(3, 12, size=(3, 4, 16), dtype=np.int32))
    monkeypatch.setattr(bench, "GROUPS", {"lora": [("penjing", "lora", "f32"), ("transformers + peft", "lora", "f32")]})
    options = argparse.Namespace(threads=1, peer_python=sys.executable, minutes=5.0)
    rows = bench.run_group("lora", tmp_path / "model", tmp_path / "tokens.npy", options)
    ours, theirs = rows
    assert len(ours.losses) == len(theirs.losses) == 3
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)  # the same model, data, seed and optimizer
    assert all(row.peak_rss_bytes > 1e8 and row.tokens_per_s > 0 for row in rows)
    bench.report(rows, tmp_path / "train.md")
    assert (tmp_path / "train.png").stat().st_size > 1000
    bench.report([], tmp_path / "train.md")  # what is kept is what was there
    assert (tmp_path / "train.md").read_text().count("| LoRA r16") == 2


def test_ratios_are_of_penjing_to_the_row(bench):
    rows = [
        bench.Row("full", "penjing", "full", "bf16", [3.0, 1.0], [9.0, 1.0, 1.0], 10**9, 100),
        bench.Row("full", "other", "full", "f32", [3.0, 2.0], [9.0, 4.0, 2.0], 4 * 10**9, 100),
    ]
    last = bench.table(rows).splitlines()[-1]
    assert "| 33 | 3.00 × | 4.00 GB | 0.25 of it | 2.000 |" in last
    assert not math.isnan(rows[0].tokens_per_s)
