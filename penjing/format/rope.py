"""Rotary embeddings from a Hugging Face config, in float32 and in the same order of steps as transformers.

The kinds: "default"; "linear" (positions / factor); "dynamic" (NTK: changes nothing up to max_position_embeddings,
where our context ends, so it is "default" here); "llama3" (low frequencies stretched, arXiv:2407.21783); "yarn"
(arXiv:2309.00071); "longrope" (a factor for each frequency, arXiv:2402.13753).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penjing.format.architecture import Rope
from penjing.format.source import bad_key, integer, number, numbers, table

Floats = NDArray[np.float32]


def rope_parameters(config: dict[str, Any], *, theta: float = 10_000.0, partial: float = 1.0) -> dict[str, Any]:
    """One flat dict from either form: `rope_parameters` (transformers 5), or `rope_theta` beside `rope_scaling`.

    `theta` and `partial` are the family's defaults. "rope_type", "rope_theta", "partial_rotary_factor",
    "max_position_embeddings" and "original_max_position_embeddings" are always in the result.
    """
    # some configs hold both; what is not null in the older form wins in transformers too
    found = table(config, "rope_scaling") or table(config, "rope_parameters")
    limit = integer(config, "max_position_embeddings")
    given = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if config.get(key) is not None}
    parameters: dict[str, Any] = {
        "rope_theta": theta,
        "partial_rotary_factor": partial,
        "original_max_position_embeddings": limit,
    }
    parameters |= given | {key: value for key, value in found.items() if value is not None}
    if config.get("original_max_position_embeddings") is not None:
        parameters["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    parameters["rope_type"] = parameters.get("rope_type") or parameters.get("type") or "default"
    parameters["max_position_embeddings"] = limit
    return parameters


def rope(parameters: dict[str, Any], head_dim: int) -> Rope:
    """The Rope that `parameters` (see `rope_parameters`) describe for heads of `head_dim`."""
    kind = parameters["rope_type"]
    if not isinstance(kind, str) or kind not in _KINDS:
        raise bad_key(parameters, "rope_type", f"known are {', '.join(_KINDS)}")
    theta = number(parameters, "rope_theta")
    rotary_dim = int(head_dim * number(parameters, "partial_rotary_factor"))
    if theta <= 1 or not 0 < rotary_dim <= head_dim:
        key = "rope_theta" if theta <= 1 else "partial_rotary_factor"
        raise bad_key(parameters, key, f"impossible for heads of {head_dim}")
    exponent = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    wavelength = np.float32(theta) ** exponent
    with np.errstate(all="ignore"):  # nonsense values become inf or NaN, and are refused below
        inv_freq, scale = _KINDS[kind](parameters, wavelength)
    if not (np.isfinite(inv_freq).all() and math.isfinite(scale)):
        raise bad_key(parameters, "rope_type", "its factors give no finite frequencies")
    return Rope(inv_freq=tuple(map(float, inv_freq)), scale=float(scale))


def max_positions(parameters: dict[str, Any]) -> int:
    """The longest context for which one table of frequencies is right.

    longrope switches to its long factors for *all* positions as soon as a text is longer than the original context,
    which a KV cache cannot follow; the short ones are used here, and the context ends where they do.
    """
    limit = integer(parameters, "max_position_embeddings")
    if parameters["rope_type"] == "longrope" and parameters.get("short_factor") != parameters.get("long_factor"):
        return min(limit, integer(parameters, "original_max_position_embeddings"))
    return limit


def _default(parameters: dict[str, Any], wavelength: Floats) -> tuple[Floats, float]:
    return np.float32(1) / wavelength, 1.0


def _linear(parameters: dict[str, Any], wavelength: Floats) -> tuple[Floats, float]:
    return np.float32(1) / wavelength / np.float32(_factor(parameters)), 1.0


def _llama3(parameters: dict[str, Any], wavelength: Floats) -> tuple[Floats, float]:
    factor = _factor(parameters)
    low, high = number(parameters, "low_freq_factor"), number(parameters, "high_freq_factor")
    original = integer(parameters, "original_max_position_embeddings")
    if low <= 0 or high <= low:
        raise bad_key(parameters, "high_freq_factor", "low_freq_factor must be positive and smaller")
    inv_freq = np.float32(1) / wavelength
    period = np.float32(2 * math.pi) / inv_freq
    smooth = (np.float32(original) / period - np.float32(low)) / np.float32(high - low)
    slow = inv_freq / np.float32(factor)
    between = (1 - smooth) * slow + smooth * inv_freq
    return np.where(period > original / low, slow, np.where(period < original / high, inv_freq, between)), 1.0


def _yarn(parameters: dict[str, Any], wavelength: Floats) -> tuple[Floats, float]:
    original = integer(parameters, "original_max_position_embeddings")
    factor = _factor(parameters)
    num_freqs = len(wavelength)
    theta, dim = number(parameters, "rope_theta"), 2 * num_freqs

    def turning(rotations: float) -> float:
        """The (fractional) frequency that turns `rotations` times within the original context."""
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    fast, slow = number(parameters, "beta_fast", 32) or 32, number(parameters, "beta_slow", 1) or 1
    if original <= 0 or fast < 0 or slow < 0:
        raise bad_key(parameters, "beta_fast", "betas and the original context must be positive")
    low, high = turning(fast), turning(slow)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0
    ramp = np.clip((np.arange(num_freqs, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    stretched, kept = np.float32(1) / (np.float32(factor) * wavelength), np.float32(1) / wavelength
    keep = 1 - ramp
    return stretched * (1 - keep) + kept * keep, _yarn_scale(parameters, factor)


def _yarn_scale(parameters: dict[str, Any], factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return number(parameters, "attention_factor")

    def scale(strength: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * strength * math.log(factor) + 1.0

    above, below = number(parameters, "mscale", 0), number(parameters, "mscale_all_dim", 0)
    return scale(above) / scale(below) if above and below else scale(1.0)


def _longrope(parameters: dict[str, Any], wavelength: Floats) -> tuple[Floats, float]:
    factors = numbers(parameters, "short_factor")
    if len(factors) != len(wavelength):
        raise bad_key(parameters, "short_factor", f"{len(wavelength)} factors are needed")
    original = integer(parameters, "original_max_position_embeddings")
    stretch = number(parameters, "factor", integer(parameters, "max_position_embeddings") / max(original, 1))
    derived = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    inv_freq = np.float32(1) / (np.asarray(factors, np.float32) * wavelength)
    return inv_freq, number(parameters, "attention_factor", derived)


def _factor(parameters: dict[str, Any]) -> float:
    factor = number(parameters, "factor")
    if factor <= 0:
        raise bad_key(parameters, "factor", "it must be positive")
    return factor


_KINDS: Final[dict[str, Callable[[dict[str, Any], Floats], tuple[Floats, float]]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
