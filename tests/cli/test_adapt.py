"""The verb: an adapter that opens with peft, and one JSON object at the end."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("peft", reason="pip install 'penjing[fit]'")

from typer.testing import CliRunner

from penjing.cli._app import application


def _run(*arguments):
    return CliRunner().invoke(application(), [*map(str, arguments)])


def test_it_learns_from_a_csv_and_the_engine_reads_what_it_wrote(talker, tmp_path):
    rows = [f"call number {number},{['yes', 'no'][number % 2]}" for number in range(60)]
    (tmp_path / "calls.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    options = ("--data", tmp_path / "calls.csv", "--set", "rank=2", "--train", "steps=8", "--train", "rate=1e-2")
    done = _run("adapt", talker, tmp_path / "a", *options, "--train", "length=64", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["after"]["loss"] < found["before"]["loss"]
    assert found["after"]["training"]["steps"] == 8

    from penjing.checkpoint import open_checkpoint
    from penjing.format.adapter import read_adapter

    adapter = read_adapter(tmp_path / "a", open_checkpoint(talker).architecture)
    assert len(adapter.additions) == 2 * 7


def test_settings_without_sense_are_errors(talker, tmp_path):
    (tmp_path / "calls.csv").write_text("text,label\na b,yes\nb c,no\nc d,yes\nd e,no\n")
    for option in (("--set", "elbow=2"), ("--train", "epoch=2"), ("--method", "magic")):
        done = _run("adapt", talker, tmp_path / "a", "--data", tmp_path / "calls.csv", *option)
        assert done.exit_code == 1
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("option", [("--set", "question=why"), ("--set", "q:rank=2"), ("--train", "q:steps=2")])
def test_what_is_no_setting_of_a_method_is_usage(talker, tmp_path, option):
    assert _run("adapt", talker, tmp_path / "a", "--data", tmp_path / "calls.csv", *option).exit_code == 2


def test_methods_are_compared_with_settings_of_their_own(talker, tmp_path, monkeypatch):
    from penjing.recipe import adapting

    monkeypatch.setattr(adapting, "_elsewhere", lambda job, progress: adapting.run(job, lambda *step: None))
    rows = [f"call number {number},{['yes', 'no'][number % 2]}" for number in range(60)]
    (tmp_path / "calls.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    train = [f"--train={entry}" for entry in ("steps=4", "length=64", "precision=f32", "norms:steps=5")]
    options = ("--data", tmp_path / "calls.csv", "--compare", "lora,norms", "--set", "l*:rank=2", *train)
    done = _run("adapt", talker, tmp_path / "c", *options, "--plot", tmp_path / "c.png", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert [(row["method"], row["steps"]) for row in found["methods"]] == [("lora", 4), ("norms", 5)]
    assert json.loads((tmp_path / "c" / "lora" / "adapter_config.json").read_text())["r"] == 2
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    shown = _run("adapt", talker, tmp_path / "c", *options)
    assert shown.exit_code == 0, shown.output
    for said in ("the base", "lora", "norms", f"{found['methods'][0]['accuracy']['value']:.3f}"):
        assert said in shown.stdout
    for wrong in (("--set", "ia3:rank=2"), ("--plot", tmp_path / "c.jpg")):
        assert _run("adapt", talker, tmp_path / "d", *options, *wrong).exit_code == 1
    assert not (tmp_path / "d").exists()
    assert _run("adapt", talker, tmp_path / "d", "--data", tmp_path / "calls.csv", "--plot", "a.png").exit_code == 2
