"""The metadata of a GGUF file from an Architecture, a Hugging Face config and a tokenizer.json: keys to values.

What is written is read again by `gguf_config.py` and `gguf_tokenizer.py`, and must be what it was written from: what
GGUF cannot say is an error and not a file that computes something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from penjing.errors import PenjingError
from penjing.format.architecture import Architecture
from penjing.format.gguf_config import MODEL_TYPES
from penjing.format.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_json
from penjing.format.rope import rope_parameters

#: Hugging Face's model_type to llama.cpp's architecture
_NAMES: Final = {model_type: name for name, (model_type, _) in MODEL_TYPES.items()} | {
    "mistral": "llama",
    "gemma3": "gemma3",
}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
#: cut by each known pre-tokenizer in its own way
_PROBE: Final = (
    "Hello, world! I'll say it's 3 o'clock, 1234567 times.\n\n  \tDon't   stop:  x+=1; naïve café 日本語 Ünïcödé "
    "…$5.00 <tag> {json: [1,2]}\r\n'LL WE'VE ~^` ABCdef"
)


def architecture_fields(arch: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the tokenizer. Raises PenjingError for families that GGUF has no name for."""
    if arch.model_type not in _NAMES:
        raise PenjingError(
            f"GGUF has no name for {arch.model_type}", where="--to gguf", attempt=f"one of: {', '.join(_NAMES)}"
        )
    name = _NAMES[arch.model_type]
    epsilon = "layer_norm_epsilon" if arch.norm == "layer" else "layer_norm_rms_epsilon"
    own: dict[str, Any] = {
        "block_count": arch.num_layers,
        "context_length": arch.max_position_embeddings,
        "embedding_length": arch.hidden_size,
        "feed_forward_length": arch.intermediate_size,
        "attention.head_count": arch.num_heads,
        "attention.head_count_kv": arch.num_kv_heads,
        "attention.key_length": arch.head_dim,
        "attention.value_length": arch.head_dim,
        f"attention.{epsilon}": float(arch.norm_eps),
        "vocab_size": arch.vocab_size,
    }
    if name == "gptneox":
        own["use_parallel_residual"] = arch.parallel
    if name == "granite":
        own |= {
            "attention.scale": float(arch.attention_scale),
            "embedding_scale": float(arch.embedding_scale),
            "residual_scale": float(arch.residual_scale),
            "logit_scale": float(1 / arch.logit_scale),
        }
    if any(arch.layer_window):
        own["attention.sliding_window"] = max(arch.layer_window)
    own |= _rope_fields(arch, config)
    return {"general.architecture": name} | {f"{name}.{key}": value for key, value in own.items()}


def rope_factors(arch: Architecture, config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """What each wavelength is stretched by, which llama.cpp reads from a tensor (of Llama 3 and its kin); else None."""
    parameters = _rope_parameters(config)
    if arch.model_type != "llama" or parameters["rope_type"] != "llama3":
        return None
    inv_freq = np.array(arch.ropes[0].inv_freq, np.float32)
    exponent = np.arange(len(inv_freq), dtype=np.float32) / np.float32(len(inv_freq))
    return (1 / (np.float32(parameters["rope_theta"]) ** exponent * inv_freq)).astype(np.float32)


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    nested = config.get("rope_parameters")
    if isinstance(nested, dict) and isinstance(nested.get("full_attention"), dict):
        config = dict(config) | {"rope_parameters": nested["full_attention"]}
    defaults = {"theta": 1e6} if config.get("model_type") == "gemma3_text" else {}
    if config.get("model_type") == "gpt_neox":
        defaults = {"theta": config.get("rotary_emb_base", 1e4), "partial": config.get("rotary_pct", 0.25)}
    return rope_parameters(dict(config), **defaults)


def _rope_fields(arch: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    parameters = _rope_parameters(config)
    own: dict[str, Any] = {
        "rope.freq_base": float(parameters["rope_theta"]),
        "rope.dimension_count": 2 * len(arch.ropes[0].inv_freq),
    }
    kind = parameters["rope_type"]
    if kind in ("linear", "yarn"):
        own |= {"rope.scaling.type": kind, "rope.scaling.factor": float(parameters["factor"])}
    if kind in ("yarn", "llama3"):
        own["rope.scaling.original_context_length"] = parameters["original_max_position_embeddings"]
    return own


def tokenizer_fields(text: str, arch: Architecture, *, where: str) -> dict[str, Any]:
    """`tokenizer.ggml.*` of a tokenizer.json. Raises PenjingError unless reading it back cuts texts in the same way."""
    tokenizer = json.loads(text)
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or not model.get("merges"):
        kind = "BPE tokenizer without merges" if model.get("type") == "BPE" else f"{model.get('type')} tokenizer"
        raise PenjingError(f"a {kind} is not known to GGUF", where=where, attempt="--to hf")
    fields = _token_fields(tokenizer, arch)
    if model.get("byte_fallback"):
        candidates = [{"model": "llama", "scores": _scores(model, fields["tokens"])}]
    else:
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        candidates = [{"model": "gpt2", "pre": pre, "merges": merges} for pre in PRE_TOKENIZERS]
    original = Tokenizer.from_str(text)
    fields |= _ends(original, arch)
    for candidate in candidates:
        found = {f"tokenizer.ggml.{key}": value for key, value in (fields | candidate).items()}
        if _cuts_alike(original, found, where):
            return found
    raise PenjingError(
        "llama.cpp has no name for how this tokenizer cuts words", where=where, attempt="--to hf, and llama.cpp's own"
    )


def _token_fields(tokenizer: Mapping[str, Any], arch: Architecture) -> dict[str, Any]:
    tokens = [f"[PAD{n}]" for n in range(arch.vocab_size)]
    kinds = [_UNUSED] * arch.vocab_size
    model = tokenizer["model"]
    for token, n in model["vocab"].items():
        byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
        tokens[n], kinds[n] = token, _BYTE if byte else _NORMAL
        if token == model.get("unk_token"):
            kinds[n] = _UNKNOWN
    for added in tokenizer.get("added_tokens", []):
        n = added["id"]
        if kinds[n] != _UNKNOWN:
            kinds[n] = _CONTROL if added["special"] else _USER_DEFINED
        tokens[n] = added["content"]
    return {"tokens": tokens, "token_type": kinds}


def _scores(model: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece makes the token of the highest score first: the earlier a merge, the higher."""
    rank: dict[str, int] = {}
    for n, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        rank.setdefault(left + right, n)
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _ends(original: Tokenizer, arch: Architecture) -> dict[str, Any]:
    """Special tokens, and which of them go around every text."""
    around, plain = original.encode("a").ids, original.encode("a", add_special_tokens=False).ids
    bos, eos = arch.bos_token_id, arch.eos_token_ids
    first = around[0] if around[: len(plain)] != plain else None
    found: dict[str, Any] = {"add_bos_token": first is not None, "add_eos_token": around[-len(plain) :] != plain}
    if bos is None:
        bos = first
    if bos is not None:
        found["bos_token_id"] = bos
    if eos:
        found["eos_token_id"] = eos[0]
    if len(eos) > 1:
        found["eot_token_id"] = eos[1]
    normalizer = json.loads(original.to_str()).get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    prepends = any(step.get("type") == "Prepend" for step in steps)
    return found | {"add_space_prefix": prepends}


def _cuts_alike(original: Tokenizer, fields: Mapping[str, Any], where: str) -> bool:
    again = Tokenizer.from_str(str(tokenizer_json(fields, where=where)))
    texts = [_PROBE, _PROBE.replace(" ", "  "), *_PROBE.split()]
    return all(original.encode(text).ids == again.encode(text).ids for text in texts)
