"""Each family against transformers: logits through the numpy reference, ropes, windows, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.format.families import family
from penjing.runtime.reference import Decoder


def reference_logits(path, token_T):
    checkpoint = open_checkpoint(path)
    weights = {part.name: checkpoint.read_part(part) for part in checkpoint.parts()}
    return Decoder(checkpoint.architecture, weights).forward(token_T)


def test_logits_are_those_of_transformers(tiny):
    error = np.abs(reference_logits(tiny.path, tiny.token_T) - tiny.logit_TV).max()
    assert error <= tiny.tolerance()
    assert np.abs(tiny.logit_TV).max() > 0.1  # else the bound would say nothing


LLAMA = {
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
}


def architecture(model_type, **changes):
    return family(model_type).architecture(LLAMA | {"model_type": model_type} | changes)


def test_defaults_of_a_bare_config():
    arch = architecture("llama", hidden_size=40)
    assert (arch.num_kv_heads, arch.head_dim, arch.tied, arch.eos_token_ids) == (4, 10, False, ())
    assert architecture("llama", head_dim=10, eos_token_id=[7, 9]).eos_token_ids == (7, 9)


def test_qwen_slides_only_when_told_and_only_above():
    windows = {"sliding_window": 5, "max_window_layers": 3, "head_dim": 10}
    assert architecture("qwen2", **windows).layer_window == (0, 0, 0, 0)
    assert architecture("qwen2", use_sliding_window=True, **windows).layer_window == (0, 0, 0, 5)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert architecture("qwen3", layer_types=kinds, **windows).layer_window == (5, 0, 5, 0)


def test_gemma_by_its_old_config():
    """As published: no layer_types, no rope_parameters, most keys left out."""
    bare = {
        "model_type": "gemma3_text",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    arch = family("gemma3_text").architecture(bare)
    assert [n for n, window in enumerate(arch.layer_window) if not window] == [5, 11, 17, 23]
    assert all((rope == 1) == (window == 1024) for rope, window in zip(arch.layer_rope, arch.layer_window, strict=True))
    assert arch.ropes[0].inv_freq[0] == 0.125
    assert arch.ropes[1].inv_freq[0] == 1.0
    assert (arch.num_heads, arch.num_kv_heads, arch.head_dim, arch.tied) == (8, 4, 256, True)
    outer = {"model_type": "gemma3", "text_config": bare, "eos_token_id": [1, 106], "vision_config": {}}
    assert family("gemma3").architecture(outer).eos_token_ids == (1, 106)


def test_smollm3_layers_without_positions():
    assert architecture("smollm3", head_dim=10).layer_rope == (0, 0, 0, -1)
    assert architecture("smollm3", head_dim=10, no_rope_layers=[0, 1, 0, 1]).layer_rope == (-1, 0, -1, 0)


def test_phi3_long_context_under_its_old_names():
    factors = {"short_factor": [1.0] * 5, "long_factor": [2.0] * 5}
    for name in ("su", "yarn", "longrope"):
        arch = architecture(
            "phi3",
            head_dim=10,
            max_position_embeddings=256,
            original_max_position_embeddings=64,
            rope_scaling={"type": name} | factors,
        )
        assert arch.max_position_embeddings == 64
        assert arch.ropes[0].scale == pytest.approx((1 + np.log(4) / np.log(64)) ** 0.5)


@pytest.mark.parametrize(
    ("model_type", "changes", "key"),
    [
        ("llama", {"hidden_act": "relu"}, "hidden_act"),
        ("llama", {"hidden_size": None}, "hidden_size"),
        ("llama", {"hidden_size": "36"}, "hidden_size"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("llama", {"num_attention_heads": 0}, "num_heads"),
        ("llama", {"num_key_value_heads": 3}, "key-value heads"),
        ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"rope_scaling": {"type": "axial"}}, "rope_type"),
        ("llama", {"num_local_experts": 8}, "num_local_experts"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["linear_attention"] * 4}, "layer_types"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "sliding_window"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "full_attention"),
        ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("gemma3", {}, "text_config"),
        ("granite", {"logits_scaling": 0}, "logits_scaling"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"),
        ("gpt_neox", {"num_key_value_heads": 2, "layer_norm_eps": 1e-5}, "num_key_value_heads"),
        ("gpt_neox", {}, "layer_norm_eps"),
    ],
)
def test_what_is_not_covered_is_refused_by_key(model_type, changes, key):
    with pytest.raises(PenjingError) as caught:
        architecture(model_type, **({"head_dim": 10} | changes))
    assert key in str(caught.value)


@pytest.mark.parametrize("model_type", ["gpt2", None, 3, ["llama"], "llama.evil", "__init__", "../llama"])
def test_unknown_families_are_refused(model_type):
    with pytest.raises(PenjingError, match="no model family"):
        family(model_type)


JUNK = (None, -1, 0, 3, 1 << 70, 0.5, float("nan"), float("inf"), "", "x", [], [None], [[]], {}, {"x": 1}, True)


def test_no_nonsense_in_a_config_escapes_as_anything_but_a_penjing_error(tiny):
    config = json.loads((tiny.path / "config.json").read_text())
    rope = config["rope_parameters"]
    more = dict.fromkeys(("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"))
    for key in config | more:
        for junk in JUNK:
            outcome_of(config | {key: junk})
    for key in rope:
        for junk in JUNK:
            outcome_of(config | {"rope_parameters": rope | {key: junk}})


def outcome_of(config):
    try:
        arch = family(config["model_type"]).architecture(config)
        arch.validate(where="test")
        assert len(list(family(config["model_type"]).parts(arch))) < 1e6
    except PenjingError:
        pass
