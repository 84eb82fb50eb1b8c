"""Tiny random models: of every family, made by transformers with its logits, the truth that opening is judged by; and
one with a tokenizer and a chat template, made without torch, for everything that talks.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background; programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

WINDOW, PROMPT = 7, 23  # the prompt is longer than every window
_COMMON = {
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_BY_HEADS = {"hidden_size": 40, "head_dim": 10}  # families that derive head_dim
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.6,
    "short_factor": [1.0, 1.5, 2.5],
    "long_factor": [2.0, 3.0, 9.0],
}
_GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
_GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 5.0,
    "attention_bias": True,
    "mlp_bias": True,
}
_SMOLLM3 = {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": WINDOW}
_NEOX = _BY_HEADS | {"num_key_value_heads": None, "rotary_pct": 0.4}

#: name to (config class, model class, what the config says besides _COMMON)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "llama-tied-biased": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama-llama3": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": _LLAMA3}),
    "llama-yarn": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": _YARN}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": WINDOW}),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        _BY_HEADS | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen2-full": ("Qwen2Config", "Qwen2ForCausalLM", _BY_HEADS),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"attention_bias": True, "sliding_window": 3}),
    "gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": _GEMMA_ROPES,
            "query_pre_attn_scalar": 13,
        },
    ),
    "gemma3_text-heads": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": _GEMMA_ROPES,
            "query_pre_attn_scalar": 10,
        },
    ),
    "phi3": (
        "Phi3Config",
        "Phi3ForCausalLM",
        _BY_HEADS | {"sliding_window": WINDOW, "rope_parameters": _LONGROPE, "original_max_position_embeddings": 32},
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _NEOX),
    "gpt_neox-sequential": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _NEOX | {"use_parallel_residual": False}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _BY_HEADS),
    "granite": ("GraniteConfig", "GraniteForCausalLM", _BY_HEADS | _GRANITE),
    "smollm3-full": ("SmolLM3Config", "SmolLM3ForCausalLM", _BY_HEADS | {"num_hidden_layers": 5}),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", _BY_HEADS | _SMOLLM3),
}


@dataclass(frozen=True)
class Tiny:
    """A saved model, a prompt, and what transformers (float32) makes of it."""

    name: str
    path: Path
    token_T: np.ndarray  # noqa: N815
    logit_TV: np.ndarray  # noqa: N815
    model: Any

    def tolerance(self) -> float:
        """Rounding of float32 through the layers, for either side.

        A dot product of n terms is off by at most n * eps of the sum of their magnitudes, and a path through a layer
        has two, of the hidden and of the inner size; magnitudes are about those of the logits, as every weight matrix
        keeps them. The window's softmax adds little beside it.
        """
        config = self.model.config
        terms = config.num_hidden_layers * (config.hidden_size + config.intermediate_size) + config.hidden_size
        return terms * float(np.finfo(np.float32).eps) * float(np.abs(self.logit_TV).max())


def _randomize(model: Any, torch: Any) -> None:
    """Norm weights around one (Gemma's around zero) and biases that matter; matrices that keep magnitudes."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.data = noise if "embed" in name else noise / parameter.shape[1] ** 0.5
        else:
            centre = 1.0 if name.endswith("weight") and "gemma3" not in model.config.model_type else 0.0
            parameter.data = centre + 0.3 * noise


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tiny]:
    """tiny_model(name of a case) -> Tiny, made once."""
    torch = pytest.importorskip("torch", reason="families are compared with transformers: pip install 'penjing[fit]'")
    transformers = pytest.importorskip("transformers", reason="pip install 'penjing[fit]'")
    torch.set_num_threads(1)
    made: dict[str, Tiny] = {}

    def make(name: str) -> Tiny:
        if name not in made:
            config_class, model_class, own = CASES[name]
            config = getattr(transformers, config_class)(**(_COMMON | own))
            model = getattr(transformers, model_class)(config).eval()
            _randomize(model, torch)
            path = tmp_path_factory.mktemp(name)
            model.save_pretrained(path)
            token_T = np.random.default_rng(3).integers(0, 101, PROMPT)
            with torch.no_grad():
                logit_TV = model(torch.from_numpy(token_T)[None]).logits[0].numpy()
            made[name] = Tiny(name, path, token_T, logit_TV, model)
        return made[name]

    return make


@pytest.fixture(params=sorted(CASES))
def tiny(request: pytest.FixtureRequest, tiny_model: Callable[..., Tiny]) -> Tiny:
    """Each case in turn."""
    return tiny_model(request.param)


CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 40 thousand weights whose tokens are bytes. What it says means nothing."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    hidden, inner, vocab, layers = 32, 64, tokenizer.get_vocab_size(), 2
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": vocab,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.token_to_id("<end>"),
    }
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (32 if name in "qo" else 16, hidden) for name in "qkvo"}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{prefix}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    random = np.random.default_rng(11)
    weights = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    folder = tmp_path_factory.mktemp("models") / "talker"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def packed_talker(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in one file, as float16."""
    from penjing.checkpoint import open_checkpoint
    from penjing.stages.pack import pack

    out = tmp_path_factory.mktemp("packed") / "talker.penjing"
    pack(open_checkpoint(talker), out)
    return out
