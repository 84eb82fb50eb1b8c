"""The Python API on a tiny model: what is promised in the README works, and torch stays away until it is needed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import penjing
from penjing.errors import PenjingError


@pytest.fixture
def model(packed_talker):
    with penjing.open(packed_talker, context=256, threads=1) as opened:
        yield opened


def test_architecture_and_name(model):
    assert (model.name, model.is_packed, model.architecture.num_layers) == ("talker", True, 2)
    assert "talker" in repr(model)


def test_same_seed_same_text(model):
    draw = [model.generate("Hello", max_tokens=20, temperature=1.0, top_p=0.9, seed=seed) for seed in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]


def test_stream_says_why_it_ended(model):
    generation = model.stream("Hello", max_tokens=5)
    text = "".join(generation)
    assert generation.result.reason in ("length", "eos")
    assert generation.result.prompt_tokens == 5
    assert text == model.generate("Hello", max_tokens=5)


def test_how_keys_and_values_are_kept_is_said_once(packed_talker):
    with penjing.open(packed_talker, kv="f32") as exact, penjing.open(packed_talker) as usual:
        assert exact.session.nbytes != usual.session.nbytes
    with pytest.raises(PenjingError, match="keys and values of kind 'f8'"):
        penjing.open(packed_talker, kv="f8").generate("Hello")


def test_chat_renders_the_template(model):
    told = [{"role": "user", "content": "Hi"}]
    raw = "".join(model.stream("[user]Hi>", max_tokens=8))
    assert model.chat(told, max_tokens=8) == raw


def test_a_second_call_builds_on_the_first(model):
    model.generate("The same beginning", max_tokens=3)
    again = model.stream("The same beginning, another end", max_tokens=3)
    "".join(again)
    assert again.result.cached_tokens >= len("The same beginning")
    with penjing.open(model.checkpoint.path, context=256, threads=1) as fresh:
        assert fresh.generate("The same beginning, another end", max_tokens=3) == model.generate(
            "The same beginning, another end", max_tokens=3
        )


def test_a_folder_talks_like_its_packed_file(model, talker):
    with penjing.open(talker, context=256, threads=1) as folder:
        assert folder.generate("Hello", max_tokens=8) == model.generate("Hello", max_tokens=8)
        assert folder.session.length > 0


def test_quantize_then_pack(talker, tmp_path):
    pytest.importorskip("torch")
    seen = []
    parent = penjing.open(talker)
    child = parent.quantize(
        tmp_path / "child",
        bits=8,
        group_size=32,
        overrides=[("embed", {"bits": 6})],
        progress=lambda *step: seen.append(step),
    )
    assert {layout.bits for layout in child.checkpoint.quantized.values()} == {6, 8}
    assert seen
    packed = child.pack(tmp_path / "child.penjing")
    assert packed.evidence.stage == "pack"
    assert packed.checkpoint.file_bytes < parent.checkpoint.file_bytes
    with packed, penjing.open(talker) as base:
        ids = base.tokenizer.encode("Hello").ids
        near, far = packed.session.forward(ids)[0], base.session.forward(ids)[0]
    assert np.corrcoef(near, far)[0, 1] > 0.95  # 6 bits of 40 thousand weights, not noise


def test_fit_is_the_main_job(talker, tmp_path):
    pytest.importorskip("torch")
    text, told = tmp_path / "notes.txt", []
    letter_NW = np.random.default_rng(0).integers(97, 123, (60, 2000), dtype=np.uint8)
    text.write_text("\n\n".join(bytes(row).decode() for row in letter_NW))
    parent = penjing.open(talker)
    with pytest.raises(PenjingError, match="memory"):
        parent.fit(tmp_path / "small.penjing", data=text, max_bytes=60_000, max_memory=1000)
    with parent.fit(tmp_path / "small.penjing", data=text, max_bytes=60_000, tell=told.append) as small:
        assert small.checkpoint.file_bytes <= 60_000
        assert small.evidence.after["quality"]["perplexity"] > 0
        assert small.evidence.predicted["peak_rss_bytes"] > 0
        assert small.generate("Item", max_tokens=3)
    assert told


def test_measure_a_packed_file(model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Some words to predict. " * 40)
    found = model.measure(text=text, what=["quality"], window=64, max_windows=2)
    assert found["quality"]["tokens"] == 2 * 63
    assert found["quality"]["perplexity"] > 1
    assert "speed" not in found


def test_no_tokenizer_is_an_error(talker, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((talker / name).read_bytes())
    with pytest.raises(PenjingError, match="no tokenizer"):
        penjing.open(bare).generate("Hello")


def test_no_chat_template_is_an_error(talker, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (plain / name).write_bytes((talker / name).read_bytes())
    with pytest.raises(PenjingError, match="no chat template"):
        penjing.open(plain).chat([{"role": "user", "content": "Hi"}])


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nothing"):
        penjing.nothing  # noqa: B018


def test_generating_needs_no_torch(packed_talker):
    program = (
        "import sys, penjing\n"
        f"model = penjing.open({str(packed_talker)!r}, threads=1)\n"
        "model.generate('Hello', max_tokens=2); model.chat([{'role': 'user', 'content': 'Hi'}], max_tokens=2)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_adapt_then_merge(talker, tmp_path):
    pytest.importorskip("peft")
    rows = [f"call number {number},{['yes', 'no'][number % 2]}" for number in range(60)]
    (tmp_path / "calls.csv").write_text("\n".join(["said,kind", *rows]) + "\n")
    train = {"steps": 8, "rate": 1e-2, "length": 64, "precision": "f32"}
    parent = penjing.open(talker, context=256, threads=1)
    columns = {"text": "said", "label": "kind"}
    found = parent.adapt(tmp_path / "a", tmp_path / "calls.csv", train=train, columns=columns, rank=2)
    assert found.after["loss"] < found.before["loss"]
    assert found.settings["spec"]["rank"] == 2
    whole = parent.merge(tmp_path / "whole", [tmp_path / "a"])
    assert whole.evidence.stage == "merge"
    with parent, whole:
        before = parent.session.forward([1, 2, 3])[0]
        parent.load_adapter(tmp_path / "a")
        beside, merged = parent.session.forward([1, 2, 3])[0], whole.session.forward([1, 2, 3])[0]
    change = np.abs(merged - before).max()
    assert np.abs(beside - merged).max() < 0.05 * change  # float16 of weights, of what is added, of neither
    with pytest.raises(PenjingError, match="no setting 'epoch'"):
        parent.adapt(tmp_path / "b", tmp_path / "calls.csv", train={"epoch": 2}, columns=columns)
    assert not (tmp_path / "b").exists()
