"""New models with random weights: a family's shape for a number of parameters.

Shapes: H hidden size, L layers, F width of the MLP, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from penjing.errors import PenjingError

#: of decoders: does a gate stand beside the MLP (three matrices of 8/3 H) or not (two of 4 H)
GATED: Final = {"llama": True, "mistral": True, "qwen2": True, "qwen3": True, "olmo2": True, "gpt_neox": False}
ENCODERS: Final = ("bert",)
FAMILIES: Final = (*GATED, *ENCODERS)
_UNIT: Final = 32  # the hidden size, and MLP, are multiples of it: groups of 32 weights can share a scale
_HEAD: Final = 32


@dataclass(frozen=True)
class Shape:
    hidden_size: int
    num_layers: int
    intermediate_size: int

    def num_parameters(self, family: str, vocab_size: int) -> int:
        """Matrices and the embedding, which is also the head (of gpt_neox the head is its own)."""
        matrices = 3 if GATED.get(family, False) else 2
        layer = 4 * self.hidden_size**2 + matrices * self.hidden_size * self.intermediate_size
        embeddings = 2 if family == "gpt_neox" else 1
        return self.num_layers * layer + embeddings * vocab_size * self.hidden_size


def shape(family: str, num_parameters: int, vocab_size: int) -> Shape:
    """The shape nearest to a number of parameters.

    A layer for about each 32 of its hidden size, from 2 to 30 layers: small models do best deep (arXiv:2402.14905).
    """
    if family not in FAMILIES:
        raise PenjingError(f"no family {family!r} to begin from scratch", attempt=", ".join(FAMILIES))
    candidates = []
    for hidden_size in range(_UNIT, 4097, _UNIT):
        usual = round(hidden_size / 32)
        for num_layers in range(max(2, usual - 1), max(4, min(30, usual + 1)) + 1):
            width = 8 * hidden_size // 3 if GATED.get(family, False) else 4 * hidden_size
            candidates.append(Shape(hidden_size, num_layers, -(-width // _UNIT) * _UNIT))
    best = min(candidates, key=lambda one: abs(one.num_parameters(family, vocab_size) - num_parameters))
    found = best.num_parameters(family, vocab_size)
    if not 0.7 < found / num_parameters < 1.4:
        raise PenjingError(
            f"no {family} of {num_parameters:,} parameters with {vocab_size} tokens",
            where=f"the nearest has {found:,}",
            attempt="another size, or a smaller vocabulary",
        )
    return best


def config(family: str, shape: Shape, vocab_size: int, max_tokens: int, **tokens: int | None) -> Any:
    """A transformers config. tokens: bos_token_id, eos_token_id, pad_token_id."""
    from transformers import AutoConfig

    heads = max(1, shape.hidden_size // _HEAD)
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": heads,
        "max_position_embeddings": max_tokens,
        **tokens,
    }
    if family in GATED and family != "gpt_neox":
        settings |= {"num_key_value_heads": heads, "head_dim": _HEAD, "tie_word_embeddings": True}
    if family in ("mistral", "qwen2", "qwen3"):
        settings["sliding_window"] = None
    if family == "qwen2":
        del settings["head_dim"]  # it follows from the others
    return AutoConfig.for_model(family, **settings)


def new_model(config: Any, seed: int = 0) -> Any:
    """The model with random weights, the same for the same seed, the layers that end a residual branch smaller by the
    square root of their number (GPT-2, section 2.3)."""
    from transformers import AutoModelForCausalLM, AutoModelForPreTraining

    kind = AutoModelForPreTraining if config.model_type in ENCODERS else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind.from_config(config, dtype=torch.float32)
        ends = ("o_proj.weight", "down_proj.weight", "attention.dense.weight", "dense_4h_to_h.weight")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(ends):
                    weight.mul_((2 * config.num_hidden_layers) ** -0.5)
    return model
