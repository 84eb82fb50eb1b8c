"""Model families: one file for each Hugging Face `model_type`, found by its name. The folder is the registry.

A family file gives `architecture(config) -> Architecture` and `parts(arch) -> Iterator[Part]`; what families share is
here, and each file says only what differs from Llama.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from penjing.errors import PenjingError
from penjing.format.architecture import LAYER_MATRICES, Architecture
from penjing.format.rope import max_positions, rope, rope_parameters
from penjing.format.source import MAX_LAYERS, Rows, bad_key, integer, number


@dataclass(frozen=True, eq=False)
class Part:
    """Canonical weight `name` is rows `rows` of the Hugging Face tensor `source`, plus `add`.

    `optional`: the model may do without (a bias). `aliases`: other names that files give to `source`.
    """

    name: str
    source: str
    rows: Rows = None
    add: float = 0.0
    optional: bool = False
    aliases: tuple[str, ...] = ()


class Family(Protocol):
    def architecture(self, config: dict[str, Any]) -> Architecture: ...
    def parts(self, arch: Architecture) -> Iterator[Part]: ...


def family(model_type: object) -> Family:
    """The family file of a Hugging Face `model_type`. Raises PenjingError where there is none."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if model_type not in known:
        raise PenjingError(
            f"no model family {model_type!r}",
            where="model_type in the model's config",
            attempt="a model of one of these: " + ", ".join(known),
        )
    return cast(Family, importlib.import_module(f"{__name__}.{model_type}"))


#: keys that change what the model computes in ways the engine does not know; null, false and absent are fine
_REFUSED: Final = (
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "num_experts",
    "num_local_experts",
    "quantization_config",
    "use_bidirectional_attention",
)
_ACTIVATIONS: Final = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def decoder(
    config: dict[str, Any],
    *,
    eps: str = "rms_norm_eps",
    act: str = "hidden_act",
    rope_theta: float = 10_000.0,
    rotary: float | None = None,
    **own: Any,
) -> Architecture:
    """The Architecture of a Llama-like config. `own` are Architecture fields that the family sets itself.

    `eps` and `act` name config keys; `rope_theta` is the family's default; `rotary` is the family's default part of a
    head that turns (None: always the whole head). Raises PenjingError naming the key that is not covered.
    """
    for key in _REFUSED:
        if config.get(key):
            raise bad_key(config, key, "not supported")
    num_layers = layer_count(config)
    hidden_size, num_heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    head_dim = integer(config, "head_dim", hidden_size // max(num_heads, 1))
    fields: dict[str, Any] = {
        "model_type": config["model_type"],
        "vocab_size": integer(config, "vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": integer(config, "intermediate_size"),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": integer(config, "num_key_value_heads", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": integer(config, "max_position_embeddings"),
        "tied": bool(config.get("tie_word_embeddings", False)),
        "norm_eps": number(config, eps),
        "activation": _activation(config, act),
        "attention_scale": max(head_dim, 1) ** -0.5,
        "layer_rope": (0,) * num_layers,
        "layer_window": (0,) * num_layers,
        "eos_token_ids": token_ids(config.get("eos_token_id")),
        "bos_token_id": next(iter(token_ids(config.get("bos_token_id"))), None),
    }
    if "ropes" not in own:
        parameters = rope_parameters(config, theta=rope_theta, partial=1.0 if rotary is None else rotary)
        if rotary is None and parameters["partial_rotary_factor"] != 1.0:
            raise bad_key(parameters, "partial_rotary_factor", "this family turns the whole head")
        fields["ropes"] = (rope(parameters, head_dim),)
        fields["max_position_embeddings"] = max_positions(parameters)
    arch = Architecture(**(fields | own))
    try:
        arch.validate(where="the model's config")
    except PenjingError as error:
        raise PenjingError(error.fact, where=error.where, attempt="copy the model again, whole") from error
    return arch


def layer_count(config: dict[str, Any]) -> int:
    return integer(config, "num_hidden_layers", most=MAX_LAYERS)


def token_ids(value: object) -> tuple[int, ...]:
    """`eos_token_id` and the like: absent, one, or a list of them."""
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if type(item) is int and item >= 0)


def windows(config: dict[str, Any], layer_types: object) -> tuple[int, ...]:
    """Attention windows from "sliding_attention" / "full_attention" for each layer.

    transformers lets a query at position p see p - sliding_window + 1 … p: the window counts the query's own position.
    """
    num_layers = layer_count(config)
    if not isinstance(layer_types, list) or len(layer_types) != num_layers:
        raise bad_key(config, "layer_types", f"{num_layers} layers are needed")
    unknown = [kind for kind in layer_types if kind not in ("sliding_attention", "full_attention")]
    if unknown:
        raise bad_key(config, "layer_types", f"{unknown[0]!r} is not supported")
    window = integer(config, "sliding_window") if "sliding_attention" in layer_types else 0
    if "sliding_attention" in layer_types and window == 0:
        raise bad_key(config, "sliding_window", "at least one position is needed")
    return tuple(window if kind == "sliding_attention" else 0 for kind in layer_types)


def sliding_everywhere(config: dict[str, Any]) -> tuple[int, ...]:
    """Attention windows of families that slide in every layer as soon as `sliding_window` is set."""
    kind = "full_attention" if config.get("sliding_window") is None else "sliding_attention"
    return windows(config, [kind] * layer_count(config))


def sliding_above(config: dict[str, Any]) -> tuple[int, ...]:
    """Attention windows of Qwen: off unless `use_sliding_window`, then in layers from `max_window_layers` on."""
    num_layers = layer_count(config)
    sliding = config.get("use_sliding_window") and config.get("sliding_window") is not None
    first = integer(config, "max_window_layers", 28) if sliding else num_layers
    derived = ["sliding_attention" if n >= first else "full_attention" for n in range(num_layers)]
    return windows(config, derived if config.get("layer_types") is None else config["layer_types"])


#: where Llama keeps each weight of a layer
LLAMA_LAYER: Final[Mapping[str, str]] = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def decoder_parts(
    arch: Architecture,
    *,
    layer: Mapping[str, str] = LLAMA_LAYER,
    top: Mapping[str, str] | None = None,
    root: str = "model.",
    rows: Mapping[str, Rows] | None = None,
    biased: Collection[str] = (),
    norm_add: float = 0.0,
    aliases: Collection[tuple[str, str]] = (),
) -> Iterator[Part]:
    """Every weight that `arch` needs, and every bias it may have.

    `layer`: canonical part of a layer to the module under `root`layers.N; `top`: the same outside the layers. `rows`:
    canonical part to its rows in a fused tensor. `biased`: parts whose bias must be there. `norm_add` is added to norm
    weights. `aliases`: pairs (beginning of a name, another beginning that some files use).
    """
    places = {"embed": f"{root}embed_tokens", "final_norm": f"{root}norm", "head": "lm_head"} | dict(top or {})
    norms = arch.norm_sizes()
    for name in [*arch.matrix_shapes(), *norms]:
        if name.startswith("layers."):
            _, number_text, part = name.split(".")
            module = f"{root}layers.{number_text}.{layer[part]}"
        else:
            part, module = name, places[name]
        chosen = (rows or {}).get(part)
        others = [other + module.removeprefix(start) for start, other in aliases if module.startswith(start)]
        add = norm_add if name in norms else 0.0
        yield Part(name, f"{module}.weight", chosen, add, False, tuple(f"{other}.weight" for other in others))
        if part in LAYER_MATRICES or (name in norms and arch.norm == "layer"):
            optional = part not in biased
            yield Part(
                f"{name}.bias", f"{module}.bias", chosen, 0.0, optional, tuple(f"{other}.bias" for other in others)
            )


def _activation(config: dict[str, Any], key: str) -> str:
    name = config.get(key)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise bad_key(config, key, f"known are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
