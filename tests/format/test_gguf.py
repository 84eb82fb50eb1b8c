"""GGUF files against the Hugging Face models they were made of: every family, every type, and damaged ones."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.runtime.reference import Decoder

gguf = pytest.importorskip("gguf", reason="reading GGUF needs pip install 'penjing[fit]'")

ARCHS = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "gpt_neox": "gptneox",
    "olmo2": "olmo2",
    "granite": "granite",
    "smollm3": "smollm3",
}
#: cases of conftest.py whose configs GGUF can express (llama.cpp knows no windows in Qwen or SmolLM 3)
CASES = (
    "llama",
    "llama-tied-biased",
    "llama-llama3",
    "llama-yarn",
    "qwen2-full",
    "qwen3",
    "gemma3_text-heads",
    "phi3",
    "gpt_neox",
    "gpt_neox-sequential",
    "olmo2",
    "granite",
    "smollm3-full",
)


def as_llama_cpp_stores(arch, name, weight, config):
    """What llama.cpp's converter does to a tensor, told independently of the code under test."""
    heads = config.num_attention_heads
    if arch in ("llama", "granite", "smollm3") and (".q_proj." in name or ".k_proj." in name):
        heads = heads if ".q_proj." in name else config.num_key_value_heads
        out = np.empty_like(weight)
        size = len(weight) // heads
        for head in range(heads):
            for pair in range(size // 2):
                for side in range(2):  # neighbours 2 * pair, 2 * pair + 1 are what were pair, pair + size / 2
                    out[head * size + 2 * pair + side] = weight[head * size + side * (size // 2) + pair]
        return out
    if arch == "gptneox" and "query_key_value" in name:
        by_head = np.split(weight, 3 * heads)  # q, k, v of head 0, q, k, v of head 1, …
        return np.concatenate([by_head[3 * head + part] for part in range(3) for head in range(heads)])
    if arch == "gemma3" and name.endswith("norm.weight"):
        return weight + 1
    return weight


def add_rope(writer, config):
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(dim)
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if kind == "longrope":
        scale = math.sqrt(1 + math.log(64 / 32) / math.log(32))
        writer.add_rope_scaling_attn_factors(scale)
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
    if kind == "llama3":
        plain = rope["rope_theta"] ** -(np.arange(0, dim, 2) / dim)
        period = 2 * np.pi / plain
        turns = rope["original_max_position_embeddings"] / period
        smooth = np.clip((turns - 1) / (4 - 1), 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / (smooth + (1 - smooth) / rope["factor"])).astype(np.float32))


def add_metadata(writer, arch, config):
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if arch != "gptneox":
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(10)
        writer.add_value_length(10)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)
    if arch == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if arch == "gemma3":
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 2)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    add_rope(writer, config)


def write_gguf(tiny, path, *, matrix_type=None):
    """The model as llama.cpp's converter would write it; matrices quantized to `matrix_type` where rows allow."""
    config = tiny.model.config
    arch = ARCHS[config.model_type]
    writer = gguf.GGUFWriter(path, arch)
    add_metadata(writer, arch, config)
    arch_id = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(arch_id, config.num_hidden_layers)
    for name, parameter in tiny.model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = as_llama_cpp_stores(arch, name, parameter.numpy(), config)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight)
    finish(writer)
    return path


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", CASES)
def test_every_family_computes_what_transformers_does(tiny_model, tmp_path, name):
    tiny = tiny_model(name)
    checkpoint = open_checkpoint(write_gguf(tiny, tmp_path / "model.gguf"))
    weights = {part.name: checkpoint.read_part(part) for part in checkpoint.parts()}
    logit_TV = Decoder(checkpoint.architecture, weights).forward(tiny.token_T)
    assert np.abs(logit_TV - tiny.logit_TV).max() <= tiny.tolerance()


@pytest.mark.parametrize("name", CASES)
def test_tensors_are_those_of_the_folder(tiny_model, tmp_path, name):
    tiny = tiny_model(name)
    opened, folder = open_checkpoint(write_gguf(tiny, tmp_path / "model.gguf")), open_checkpoint(tiny.path)
    assert opened.tensors.keys() == folder.tensors.keys()
    for tensor in folder.tensors:
        wanted = folder.read(tensor)
        # Gemma's 1 + weight was rounded when it was written
        np.testing.assert_allclose(opened.read(tensor), wanted, rtol=0, atol=2**-23 if "gemma" in name else 0)
        np.testing.assert_array_equal(opened.read(tensor, slice(3, 9)), opened.read(tensor)[3:9])


def test_the_config_is_one_that_transformers_reads(tiny_model, tmp_path):
    transformers = pytest.importorskip("transformers")
    for name in CASES:
        tiny = tiny_model(name)
        config = open_checkpoint(write_gguf(tiny, tmp_path / "model.gguf")).config
        found = transformers.AutoConfig.for_model(**config)
        assert type(found) is type(tiny.model.config)
        for key in ("hidden_size", "num_attention_heads", "max_position_embeddings", "tie_word_embeddings"):
            assert getattr(found, key) == getattr(tiny.model.config, key), (name, key)
