"""GGUF files as exported: opened again they are the same model, whatever it was stored as."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("gguf", reason="pip install 'penjing[fit]'")

from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.format.pack import dequantize
from penjing.runtime.reference import Decoder
from penjing.stages.exports import export
from penjing.stages.pack import pack
from penjing.stages.quantize import quantize

#: families, and kinds of rope, that GGUF can express
CASES = (
    "llama",
    "llama-tied-biased",
    "llama-llama3",
    "llama-yarn",
    "qwen2-full",
    "qwen3",
    "olmo2",
    "granite",
    "gpt_neox",
)


def logits(checkpoint, token_T):
    weights = {part.name: checkpoint.read_part(part) for part in checkpoint.parts()}
    return Decoder(checkpoint.architecture, weights).forward(token_T)


@pytest.mark.parametrize("name", CASES)
def test_every_family_is_the_same_model_again(tiny_model, tmp_path, name):
    tiny = tiny_model(name)
    checkpoint = open_checkpoint(tiny.path)
    done = export(checkpoint, tmp_path / "model.gguf", to="gguf")
    found = logits(open_checkpoint(done.out), tiny.token_T)
    assert set(done.types) == {"F16"}
    # weights were rounded to 11 bits, which is neither nothing nor much
    difference = np.abs(found - logits(checkpoint, tiny.token_T)).max()
    assert 0 < difference < 0.01 * np.abs(found).max()


def wide_model(tmp_path):
    """Rows of 64 and 96: whole blocks of 32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    return open_checkpoint(tmp_path / "wide")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ({"bits": 4}, "Q4_0"),
        ({"bits": 2}, "Q4_0"),
        ({"bits": 5}, "Q5_0"),
        ({"bits": 8}, "Q8_0"),
        ({"bits": 6}, "Q8_0"),
        ({"bits": 4, "symmetric": False}, "Q4_1"),
        ({"bits": 5, "symmetric": False}, "Q5_1"),
    ],
)
def test_codes_stay_what_they_are(tmp_path, spec, kind, packed):
    quantize(wide_model(tmp_path), tmp_path / "child", spec=spec | {"group_size": 32})
    child = open_checkpoint(tmp_path / "child")
    if packed:
        pack(child, tmp_path / "child.penjing")
        child = open_checkpoint(tmp_path / "child.penjing")
    done = export(child, tmp_path / "model.gguf", to="gguf")
    assert done.types == {kind: 9}
    assert not done.notes
    found = open_checkpoint(done.out)
    for part in found.parts():
        if part.name not in child.quantized:
            continue
        packed_part = child.packed(part.name)
        wanted = dequantize(child.quantized[part.name], packed_part)
        step = np.abs(packed_part["scales"]).max().astype(np.float32)
        slack = {"Q4_1": 2**-7, "Q5_1": 2**-6}.get(kind, 0)
        assert np.abs(found.read_part(part) - wanted).max() <= slack * step


def test_groups_that_do_not_fit_become_float16_and_are_listed(tmp_path):
    quantize(wide_model(tmp_path), tmp_path / "child", spec={"bits": 4, "group_size": 16})
    child = open_checkpoint(tmp_path / "child")
    done = export(child, tmp_path / "model.gguf", to="gguf")
    assert done.types == {"F16": 9}
    assert len(done.notes) == 9
    assert "4 bits, groups of 16" in done.notes[0]
    found = open_checkpoint(done.out)
    for part in child.parts():  # a step of 4 bits times a scale of 11 bits, to 11 bits again
        np.testing.assert_allclose(found.read_part(part), child.read_part(part), rtol=2**-10, atol=2**-24)


@pytest.mark.parametrize("name", ["phi3", "mistral", "smollm3", "gemma3_text", "qwen2"])
def test_what_gguf_cannot_say_is_told_and_nothing_is_written(tiny_model, tmp_path, name):
    with pytest.raises(PenjingError, match="GGUF cannot say this model's"):
        export(open_checkpoint(tiny_model(name).path), tmp_path / "out.gguf", to="gguf")
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]


def test_names_and_files_that_are_there(tiny_model, tmp_path):
    checkpoint = open_checkpoint(tiny_model("llama").path)
    with pytest.raises(PenjingError, match=r"ends in \.gguf"):
        export(checkpoint, tmp_path / "model", to="gguf")
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(PenjingError, match="already there"):
        export(checkpoint, tmp_path / "a.gguf", to="gguf")
    assert (tmp_path / "a.gguf").read_text() == "mine"
    export(checkpoint, tmp_path / "a.gguf", to="gguf", force=True)
    with pytest.raises(PenjingError, match="no format 'onnx'") as caught:
        export(checkpoint, tmp_path / "b", to="onnx")
    assert "gguf" in caught.value.attempt
