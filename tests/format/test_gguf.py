"""GGUF files against the Hugging Face models they were made of: every family, every type, and damaged ones."""

from __future__ import annotations

import math

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


def write_gguf(tiny, path, *, extra=None):
    """The model as llama.cpp's converter would write it, with `extra` tensors."""
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
    for name, weight in (extra or {}).items():
        writer.add_tensor(name, weight)
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


def write_square(path, kind, raw_of):
    """One llama layer of 256 x 256 matrices (a block of the k-quants is 256 wide) of type `kind`."""
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, 1),
        (writer.add_context_length, 64),
        (writer.add_embedding_length, 256),
        (writer.add_feed_forward_length, 256),
        (writer.add_head_count, 4),
        (writer.add_layer_norm_rms_eps, 1e-5),
    ):
        add(value)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", raw_of(name), raw_dtype=kind)
    writer.add_tensor("token_embd.weight", raw_of("embed"), raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(256, np.float32))
    finish(writer)
    return path


TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("type_name", TYPES)
def test_every_type_is_read_by_rows(tmp_path, type_name):
    kind = gguf.GGMLQuantizationType[type_name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(int(kind))
    raw = {}

    def raw_of(name):
        raw[name] = generator.integers(0, 256, (256, 256 // block * block_bytes), np.uint8)
        return raw[name]

    checkpoint = open_checkpoint(write_square(tmp_path / "model.gguf", kind, raw_of))
    weight = "model.layers.0.mlp.up_proj.weight"
    with np.errstate(all="ignore"):  # random bytes: some scales are NaN or infinite, equal all the same
        wanted = gguf.quants.dequantize(raw["ffn_up"], kind)
    np.testing.assert_array_equal(checkpoint.read(weight), wanted)
    for rows in (slice(0, 1), slice(17, 203), slice(250, 400), slice(9, 3), slice(256, 256)):
        found = checkpoint.read(weight, rows)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted[rows])
    assert checkpoint.tensors[weight].dtype == (type_name if type_name in ("F32", "BF16") else "F16")


@pytest.mark.parametrize(("type_name", "bits"), [("Q8_0", 8), ("Q4_0", 4), ("Q4_1", 4), ("Q5_0", 5), ("Q5_1", 5)])
def test_quantized_weights_are_near_what_was_quantized(tmp_path, type_name, bits):
    kind = gguf.GGMLQuantizationType[type_name]
    weight = np.random.default_rng(0).uniform(-1, 1, (256, 256)).astype(np.float32)
    path = write_square(tmp_path / "model.gguf", kind, lambda name: gguf.quants.quantize(weight, kind))
    error = np.abs(open_checkpoint(path).read("model.layers.0.self_attn.v_proj.weight") - weight).max()
    # a step of 2 / 2^bits; a symmetric grid loses up to one whole step at its upper end
    assert error <= 2 / 2**bits * 1.01


def test_rows_of_a_reordered_tensor_are_those_of_the_whole(tiny_model, tmp_path):
    for name, tensor in (
        ("llama", "model.layers.1.self_attn.q_proj.weight"),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value.weight"),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value.bias"),
    ):
        checkpoint = open_checkpoint(write_gguf(tiny_model(name), tmp_path / "model.gguf"))
        whole = checkpoint.read(tensor)
        for rows in (slice(0, 1), slice(5, 23), slice(len(whole) - 1, None), slice(4, 4)):
            np.testing.assert_array_equal(checkpoint.read(tensor, rows), whole[rows])


def test_unknown_types_are_refused_by_name(tmp_path):
    kind = gguf.GGMLQuantizationType.IQ4_XS
    path = write_square(tmp_path / "model.gguf", kind, lambda name: np.zeros((256, 136), np.uint8))
    with pytest.raises(PenjingError, match="IQ4_XS weights are not supported"):
        open_checkpoint(path)


def test_strange_tensors_are_refused_by_name(tiny_model, tmp_path):
    extra = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}
    path = write_gguf(tiny_model("llama"), tmp_path / "model.gguf", extra=extra)
    with pytest.raises(PenjingError, match=r"blk\.0\.attn_sinks\.weight has no place"):
        open_checkpoint(path)


def test_a_file_that_shrinks_is_an_error(tiny_model, tmp_path):
    path = write_gguf(tiny_model("llama"), tmp_path / "model.gguf")
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(PenjingError, match="became shorter"):
        checkpoint.read("lm_head.weight")


def test_no_damage_escapes_as_anything_but_a_penjing_error(tiny_model, tmp_path):
    whole = write_gguf(tiny_model("phi3"), tmp_path / "model.gguf").read_bytes()
    header = whole.index(b"output_norm.weight") + 200
    generator = np.random.default_rng(1)
    path = tmp_path / "damaged.gguf"
    refused = 0
    for n in range(600):
        data = bytearray(whole)
        if n % 4 == 0:
            data = data[: generator.integers(0, len(data))]
        for _ in range(generator.integers(1, 4)):
            place = int(generator.integers(0, min(header, len(data)) or 1))
            data[place : place + 1] = bytes([int(generator.choice([0, 1, 127, 255, generator.integers(0, 256)]))])
        path.write_bytes(data)
        try:
            checkpoint = open_checkpoint(path)
            for tensor in checkpoint.tensors:
                checkpoint.read(tensor)
        except PenjingError:
            refused += 1
    assert refused > 300
