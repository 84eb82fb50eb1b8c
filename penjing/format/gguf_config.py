"""A Hugging Face config from the metadata of a GGUF file.

Old key names are written (`rope_theta`, `rope_scaling`): transformers 4 and 5 and everybody else read those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from penjing.errors import PenjingError
from penjing.format.source import MAX_LAYERS, bad_key, integer, number

#: llama.cpp's architecture to Hugging Face's model_type and class
MODEL_TYPES: Final = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "phi3": ("phi3", "Phi3ForCausalLM"),
    "gptneox": ("gpt_neox", "GPTNeoXForCausalLM"),
    "olmo2": ("olmo2", "Olmo2ForCausalLM"),
    "granite": ("granite", "GraniteForCausalLM"),
    "smollm3": ("smollm3", "SmolLM3ForCausalLM"),
}
#: control tokens that end an answer, in models whose file names only one of theirs
_ENDINGS: Final = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
)
_CONTROL: Final = 3


def hf_config(
    fields: Mapping[str, Any], *, vocab_size: int, tied: bool, factors: Mapping[str, list[float]]
) -> dict[str, Any]:
    """config.json as Hugging Face would have it. `factors`: values of the rope_* tensors in the file, by name.

    Raises PenjingError naming the key that is missing or not covered.
    """
    arch = fields.get("general.architecture")
    if not isinstance(arch, str) or arch not in MODEL_TYPES:
        raise PenjingError(
            f"GGUF files of architecture {arch!r} are not supported",
            where="general.architecture",
            attempt="a model of one of these: " + ", ".join(MODEL_TYPES),
        )
    own = {key.removeprefix(f"{arch}."): value for key, value in fields.items() if key.startswith(f"{arch}.")}
    model_type, class_name = MODEL_TYPES[arch]
    heads, hidden = integer(own, "attention.head_count"), integer(own, "embedding_length")
    head_dim = integer(own, "attention.key_length", hidden // max(heads, 1))
    if integer(own, "attention.value_length", head_dim) != head_dim:
        raise bad_key(own, "attention.value_length", "keys and values of different lengths are not supported")
    config = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": integer(own, "feed_forward_length"),
        "num_hidden_layers": integer(own, "block_count", most=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": integer(own, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": integer(own, "context_length"),
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "num_local_experts": integer(own, "expert_count", 0) or None,
        "attn_logit_softcapping": own.get("attn_logit_softcapping"),
        "final_logit_softcapping": own.get("final_logit_softcapping"),
    }
    if arch != "gptneox":
        config["rms_norm_eps"] = number(own, "attention.layer_norm_rms_epsilon")
    config |= _rope(own, config, factors) | _token_ids(fields)
    config |= _OWN.get(arch, _nothing)(own, config)
    return {key: value for key, value in config.items() if value is not None}


def generation_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json: here every token that ends an answer."""
    ids = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens, kinds = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(kinds, list):
        ids += [
            n
            for n, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
            if kind == _CONTROL and token in _ENDINGS
        ]
    endings = list(dict.fromkeys(item for item in ids if type(item) is int))
    return {"eos_token_id": endings} if endings else {}


def _token_ids(fields: Mapping[str, Any]) -> dict[str, Any]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {key: fields.get(f"tokenizer.ggml.{name}_token_id") for key, name in names.items()}


def _rope(own: dict[str, Any], config: dict[str, Any], factors: Mapping[str, list[float]]) -> dict[str, Any]:
    dim = integer(own, "rope.dimension_count", config["head_dim"])
    rope: dict[str, Any] = {"rope_theta": number(own, "rope.freq_base", 10_000.0)}
    if dim != config["head_dim"]:
        rope["partial_rotary_factor"] = dim / max(config["head_dim"], 1)
    kind = own.get("rope.scaling.type", "none")
    original = own.get("rope.scaling.original_context_length", config["max_position_embeddings"])
    scaling: dict[str, Any] | None = None
    if "rope_factors_short.weight" in factors and "rope_factors_long.weight" in factors:
        rope["original_max_position_embeddings"] = original
        scaling = _longrope(factors["rope_factors_short.weight"], factors["rope_factors_long.weight"])
        scaling["attention_factor"] = own.get("rope.scaling.attn_factor")
    elif "rope_freqs.weight" in factors:  # llama3's, already worked out: one factor for each frequency, at any length
        scaling = _longrope(factors["rope_freqs.weight"], factors["rope_freqs.weight"])
        scaling |= {"factor": 1.0, "attention_factor": 1.0, "original_max_position_embeddings": original}
    elif kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": number(own, "rope.scaling.factor")}
        if kind == "yarn":
            scaling["original_max_position_embeddings"] = original
            scaling |= {name: own.get(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
    elif kind != "none":
        raise bad_key(own, "rope.scaling.type", "not supported without its factors")
    if scaling:
        rope["rope_scaling"] = {key: value for key, value in scaling.items() if value is not None}
    return rope


def _longrope(short: list[float], long: list[float]) -> dict[str, Any]:
    return {"rope_type": "longrope", "short_factor": short, "long_factor": long}


def _nothing(own: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    return {}


def _gemma3(own: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    # the one size whose queries are not scaled by its head size; the file does not say so, llama.cpp counts layers too
    odd = layers == 62
    per_head = config["hidden_size"] // max(config["num_attention_heads"], 1)
    return {
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": per_head if odd else config["head_dim"],
        "sliding_window": integer(own, "attention.sliding_window"),
        "layer_types": ["sliding_attention" if slides else "full_attention" for slides in _sliding(own, layers)],
        "rope_local_base_freq": number(own, "rope.freq_base_swa", 10_000.0),
    }


def _sliding(own: dict[str, Any], num_layers: int) -> list[bool]:
    """Which layers slide: all but every n-th (6 where the file does not say), or said for each."""
    pattern = own.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != num_layers:
            raise bad_key(own, "attention.sliding_window_pattern", f"{num_layers} layers are needed")
        return [bool(slides) for slides in pattern]
    period = integer(own, "attention.sliding_window_pattern", 6) or 1
    return [(n + 1) % period != 0 for n in range(num_layers)]


def _phi3(own: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    return {"sliding_window": integer(own, "attention.sliding_window", 0) or None}


def _gptneox(own: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_act": "gelu",
        "layer_norm_eps": number(own, "attention.layer_norm_epsilon"),
        "use_parallel_residual": bool(own.get("use_parallel_residual", True)),
        "rotary_emb_base": config["rope_theta"],
        "rotary_pct": config.get("partial_rotary_factor", 1.0),
        "partial_rotary_factor": None,
    } | dict.fromkeys(("rope_theta", "head_dim"))


def _olmo2(own: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    if own.get("attention.sliding_window"):
        raise bad_key(own, "attention.sliding_window", "OLMo 3 is not supported")
    return {}


def _granite(own: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    return {
        "embedding_multiplier": number(own, "embedding_scale", 1.0),
        "attention_multiplier": number(own, "attention.scale", config["head_dim"] ** -0.5),
        "residual_multiplier": number(own, "residual_scale", 1.0),
        "logits_scaling": number(own, "logit_scale", 1.0),
    }


#: what one architecture adds to, or (with None) takes from, the common config
_OWN: Final = {"gemma3": _gemma3, "phi3": _phi3, "gptneox": _gptneox, "olmo2": _olmo2, "granite": _granite}
