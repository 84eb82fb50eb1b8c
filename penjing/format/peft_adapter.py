"""A folder that peft wrote (adapter_config.json, adapter_model.safetensors) as an Adapter, without peft or torch.

Plain LoRA and rank-stabilized LoRA (arXiv:2312.03732) on linear layers. What changes more than that is refused by name:
an adapter applied in part gives silently bad answers. Shapes: R rank, I inputs, O outputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.format.adapter import Adapter, Addition
from penjing.format.architecture import Architecture
from penjing.format.families import family
from penjing.format.hf import read_object
from penjing.format.safetensors_file import SafetensorsFile

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_MERGE: Final = "merge it into its model with peft's merge_and_unload, and open that"
#: settings that make the adapter more than y += scale * B (A x); false, null and empty are fine
_REFUSED: Final = (
    "use_dora",
    "modules_to_save",
    "layer_replication",
    "lora_bias",
    "fan_in_fan_out",
    "trainable_token_indices",
    "megatron_config",
    "use_qalora",
    "alora_invocation_tokens",
)
#: initialisations that also change the weights of the model that the adapter is for
_CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq")


def read_peft(folder: Path, architecture: Architecture) -> Adapter:
    """The adapter in canonical names, its scale multiplied into B. Raises PenjingError."""
    config = read_object(folder / CONFIG, missing=f"not an adapter: there is no {CONFIG}")
    _check_plain(config, where=str(folder / CONFIG))
    parts = _parts_by_module(architecture)
    additions: dict[str, Addition] = {}
    with SafetensorsFile(folder / WEIGHTS) as file:
        for module, (a_name, b_name) in _pairs(file).items():
            place = f"{module} in {file.path}"
            if module not in parts:
                raise PenjingError("the model has no such matrix for an adapter", where=place, attempt=_MERGE)
            a_RI, b_OR = file.read(a_name), file.read(b_name)
            if a_RI.ndim != 2 or b_OR.ndim != 2:
                raise PenjingError("not a pair of matrices", where=place, attempt=_MERGE)
            b_OR *= np.float32(_scale(config, module, len(a_RI), where=str(folder / CONFIG)))
            for name, rows in parts[module]:
                additions[name] = Addition(a_RI, b_OR if rows is None else _rows(b_OR, rows, place))
    return Adapter(additions)


def _check_plain(config: Mapping[str, Any], *, where: str) -> None:
    if config.get("peft_type") != "LORA":
        raise PenjingError(f"an adapter of type {config.get('peft_type')!r}, not LORA", where=where, attempt=_MERGE)
    for key in _REFUSED:
        if config.get(key):
            raise PenjingError(f"{key} is {config[key]!r}: not supported", where=where, attempt=_MERGE)
    if config.get("bias", "none") != "none":
        raise PenjingError(f"bias is {config['bias']!r}: not supported", where=where, attempt=_MERGE)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        fact = f"init_lora_weights is {start!r}: it was trained on other weights than its model's"
        raise PenjingError(fact, where=where, attempt="convert it to plain LoRA with peft, see path_initial_model_…")


def _pairs(file: SafetensorsFile) -> dict[str, tuple[str, str]]:
    """Module to the names of its A and B."""
    found: dict[str, dict[str, str]] = {}
    for name in file.tensors:
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name.removeprefix(_PREFIX))
        if match is None:
            raise PenjingError(f"{name} is no part of a plain LoRA", where=str(file.path), attempt=_MERGE)
        found.setdefault(match[1], {})[match[2]] = name
    for module, pair in found.items():
        if len(pair) != 2:
            raise PenjingError(f"half an addition to {module}", where=str(file.path), attempt="copy the adapter again")
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}


def _scale(config: Mapping[str, Any], module: str, rank: int, *, where: str) -> float:
    """alpha / r, or alpha / sqrt(r) where the rank is stabilized; a pattern may give a module an alpha of its own."""
    try:
        alpha = float(_alpha(config.get("alpha_pattern") or {}, module, config["lora_alpha"]))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError, OverflowError) as error:
        raise PenjingError(
            f"no scale for {module}: {error!r}", where=where, attempt="copy the adapter again"
        ) from error
    if not math.isfinite(scale):
        raise PenjingError(f"the scale of {module} is {scale}", where=where, attempt="train the adapter again")
    return scale


def _alpha(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    """peft's patterns are regular expressions for the end of a name; here they are names: a file runs no code."""
    for key, value in patterns.items():
        if not re.fullmatch(r"[\w.]+", key):
            raise ValueError(f"alpha_pattern {key!r} is not a name")
        if module == key or module.endswith(f".{key}"):
            return value
    return otherwise


def _parts_by_module(architecture: Architecture) -> dict[str, list[tuple[str, Any]]]:
    """Hugging Face's module to the canonical matrices that it holds, and which of its rows each is."""
    matrices = architecture.matrix_shapes()
    found: dict[str, list[tuple[str, Any]]] = {}
    for part in family(architecture.model_type).parts(architecture):
        if part.name in matrices:
            for source in (part.source, *part.aliases):
                found.setdefault(source.removesuffix(".weight"), []).append((part.name, part.rows))
    return found


def _rows(b_OR: NDArray[np.float32], rows: Any, place: str) -> NDArray[np.float32]:
    try:
        return np.ascontiguousarray(b_OR[rows])
    except IndexError as error:
        raise PenjingError(f"B of {b_OR.shape} has too few rows", where=place, attempt=_MERGE) from error
