"""llama.cpp opens what is exported, and its perplexity is the engine's. Runs where llama-cpp-python is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("gguf", reason="pip install 'penjing[fit]'")
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from penjing.checkpoint import open_checkpoint
from penjing.runtime.session import Session
from penjing.stages.exports import export
from penjing.stages.pack import pack
from penjing.stages.quantize import quantize

ROOT = Path(__file__).resolve().parents[3]
NUM_TOKENS = 200


@pytest.fixture(scope="module")
def llama_python() -> str:
    """This Python or that of the peers (`make bench-peers`), whichever has llama_cpp."""
    for python in (sys.executable, str(ROOT / ".venv-peers" / "bin" / "python")):
        try:
            if subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, check=False).returncode == 0:
                return python
        except FileNotFoundError:
            continue
    pytest.skip("no llama_cpp: pip install llama-cpp-python, here or in .venv-peers")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Random, with weights so large that it is far from sure of everything being alike."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "wide"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: n for n, token in enumerate([*letters, "th", "the"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def ours(path: Path, token_T: list[int]) -> float:
    with Session(path, context=256, threads=1, kv="f32") as session:
        logit_TV = session.forward(token_T, len(token_T)).astype(np.float64)[:-1]
    total_T = np.logaddexp.reduce(logit_TV, axis=1)
    return float(np.exp((total_T - logit_TV[np.arange(len(total_T)), token_T[1:]]).mean()))


@pytest.mark.parametrize("spec", [{"bits": 4}, {"bits": 8}, {"bits": 4, "symmetric": False}], ids=str)
def test_perplexity_is_the_same(model, llama_python, tmp_path, spec):
    quantize(open_checkpoint(model), tmp_path / "child", spec=spec | {"group_size": 32})
    child = open_checkpoint(tmp_path / "child")
    pack(child, tmp_path / "child.penjing")
    export(child, tmp_path / "model.gguf", to="gguf")
    token_T = np.random.default_rng(0).integers(0, 258, NUM_TOKENS).tolist()
    (tmp_path / "windows.json").write_text(json.dumps([token_T]))
    script = ROOT / "scripts" / "peers" / "llamacpp_quality.py"
    command = [llama_python, str(script), str(tmp_path / "model.gguf"), str(tmp_path / "windows.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens"] == NUM_TOKENS - 1
    wanted = ours(tmp_path / "child.penjing", token_T)
    assert wanted > 300  # worse than knowing nothing: each wrong row of a matrix would be seen
    assert found["perplexity"] == pytest.approx(wanted, rel=0.005)
