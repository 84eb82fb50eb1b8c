"""csrc/include/penjing.h for ctypes: the same structs, the same functions, errors as PenjingError."""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import penjing
from penjing.errors import PenjingError

ABI_VERSION: Final = 7
MAX_ROPES: Final = 8
WAY_BACK: Final = 256

BAD_ARGUMENT: Final = 1
OUT_OF_MEMORY: Final = 2
CANCELLED: Final = 3
NOT_FINITE: Final = 4
CONTEXT_FULL: Final = 5
FORGOTTEN: Final = 6

ABSENT: Final = 0
KINDS: Final = {"codes": 1, "f32": 2, "f16": 3, "bf16": 4}
LEVELS: Final = {"uniform": 0, "ternary": 1, "book": 2}
KV_KINDS: Final = {"auto": 0, "f32": 2, "f16": 3, "i8": 5}
ACTIVATIONS: Final = {"silu": 0, "gelu": 1, "gelu_tanh": 2}
QK_NORMS: Final = {"none": 0, "head": 1, "full": 2}

_REMEDIES: Final = {
    OUT_OF_MEMORY: "a smaller context, fewer threads",
    NOT_FINITE: "check the model's weights: some are damaged or overflow",
    CONTEXT_FULL: "a larger context, or truncate the session",
    FORGOTTEN: "truncate to 0 and evaluate the tokens again",
}


class EngineError(PenjingError):
    """What the engine refused, with its status (`CANCELLED`, `CONTEXT_FULL`, ...)."""

    def __init__(self, status: int, fact: str, *, where: str = "") -> None:
        super().__init__(fact, where=where, attempt=_REMEDIES.get(status, ""))
        self.status = status


class Matrix(ctypes.Structure):
    """pj_matrix"""

    _fields_ = (
        ("data", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("bias", c_void_p),
        ("book", c_void_p),
        ("kind", c_int32),
        ("rows", c_int32),
        ("cols", c_int32),
        ("bits", c_int32),
        ("group_size", c_int32),
        ("levels", c_int32),
        ("scale_bits", c_int32),
    )


class Norm(ctypes.Structure):
    """pj_norm"""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class Layer(ctypes.Structure):
    """pj_layer"""

    _fields_ = (
        *((name, Norm) for name in ("attn_norm", "q_norm", "k_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm")),
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("rope", c_int32),
        ("window", c_int32),
    )


class Rope(ctypes.Structure):
    """pj_rope"""

    _fields_ = (("inv_freq", c_void_p), ("rotary_dim", c_int32), ("scale", c_float))


_SIZES: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "layer_norm",
    "qk_norm",
    "parallel",
    "activation",
    "num_ropes",
)
_SCALES: Final = ("norm_eps", "attention_scale", "embedding_scale", "residual_scale", "logit_scale")


class ModelDesc(ctypes.Structure):
    """pj_model_desc"""

    _fields_ = (
        ("struct_size", c_uint32),
        *((name, c_int32) for name in _SIZES),
        *((name, c_float) for name in _SCALES),
        ("ropes", Rope * MAX_ROPES),
        ("embed", Matrix),
        ("head", Matrix),
        ("final_norm", Norm),
        ("layers", POINTER(Layer)),
    )


class Lora(ctypes.Structure):
    """pj_lora"""

    _fields_ = (("a", c_void_p), ("b", c_void_p), ("kind", c_int32), ("rank", c_int32))


class AdapterLayer(ctypes.Structure):
    """pj_adapter_layer"""

    _fields_ = tuple((name, Lora) for name in ("q", "k", "v", "o", "gate", "up", "down"))


_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "pj_abi_version": (c_int, ()),
    "pj_last_error": (c_char_p, ()),
    "pj_isa": (c_char_p, ()),
    "pj_model_create": (c_int, (POINTER(ModelDesc), POINTER(c_void_p))),
    "pj_model_free": (None, (c_void_p,)),
    "pj_session_create": (c_int, (c_void_p, c_int, c_int, c_int, c_int, POINTER(c_void_p))),
    "pj_session_free": (None, (c_void_p,)),
    "pj_session_bytes": (c_size_t, (c_void_p,)),
    "pj_session_length": (c_int, (c_void_p, c_int)),
    "pj_session_least": (c_int, (c_void_p, c_int)),
    "pj_session_truncate": (c_int, (c_void_p, c_int, c_int)),
    "pj_session_fork": (c_int, (c_void_p, c_int, c_int, c_int)),
    "pj_adapter_create": (c_int, (c_void_p, POINTER(AdapterLayer), POINTER(c_void_p))),
    "pj_adapter_free": (None, (c_void_p,)),
    "pj_session_use_adapter": (c_int, (c_void_p, c_int, c_void_p)),
    "pj_session_state_bytes": (c_size_t, (c_void_p, c_int, c_int)),
    "pj_session_export": (c_int, (c_void_p, c_int, c_void_p)),
    "pj_session_import": (c_int, (c_void_p, c_int, c_void_p, c_int, c_int)),
    "pj_forward": (c_int, (c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_int)),
    "pj_session_cancel": (None, (c_void_p,)),
    "pj_probe_read": (c_double, (c_size_t, c_int, c_int)),
    "pj_probe_int8": (c_double, (c_int, c_int)),
    "pj_linear": (c_int, (POINTER(Matrix), c_void_p, c_int, c_int, c_void_p)),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The engine, loaded once. Raises PenjingError when it is missing, cannot be loaded or is of another version."""
    path = _find()
    try:
        engine = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(engine, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise PenjingError(f"cannot load the engine: {error}", where=str(path), attempt="pip install .") from error
    version = engine.pj_abi_version()
    if version != ABI_VERSION:
        raise PenjingError(
            f"the engine has version {version} of its interface, this penjing needs {ABI_VERSION}",
            where=str(path),
            attempt="pip install . (build both together)",
        )
    return engine


def _find() -> Path:
    """PENJING_LIBRARY, else the first _lib/libpenjing.so: an editable install keeps it apart from the sources."""
    chosen = os.environ.get("PENJING_LIBRARY")
    if chosen:
        return Path(chosen)
    places = [Path(entry) / "_lib" / "libpenjing.so" for entry in penjing.__path__]
    for place in places:
        if place.is_file():
            return place
    raise PenjingError(
        "the engine is not built",
        where=", ".join(map(str, places)),
        attempt="pip install . (needs a C++17 compiler), or set PENJING_LIBRARY",
    )


def isa() -> str:
    """The kernels in use: "scalar", "sse41", "avx2", "avxvnni", "avx512vnni", "avx512amx", "neon" or
    "neon_i8mm".

    Raises PenjingError if PENJING_ISA names some that cannot run here.
    """
    name = library().pj_isa()
    if name is None:
        raise PenjingError(last_error(), where="environment", attempt="unset PENJING_ISA")
    return str(name.decode())


def last_error() -> str:
    """What the last call that failed on this thread said."""
    return str(library().pj_last_error().decode(errors="replace"))


def check(status: int, *, where: str = "") -> None:
    """Raise EngineError unless a call succeeded."""
    if status:
        raise EngineError(status, last_error(), where=where)


def pointer(array: NDArray[Any] | None) -> int | None:
    """The address of an array's first element. The caller keeps the array alive."""
    return None if array is None else int(array.ctypes.data)


def linear(matrix: Matrix, x_CI: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.float32]:
    """y_CO = x_CI Wᵀ + bias with the kernels in use, for tests and benches. Raises EngineError."""
    x_CI = np.ascontiguousarray(x_CI, dtype=np.float32)
    if x_CI.ndim != 2 or x_CI.shape[1] != matrix.cols:
        raise PenjingError(f"inputs of shape {x_CI.shape} for {matrix.cols} columns", where="linear")
    y_CO = np.empty((len(x_CI), max(0, matrix.rows)), np.float32)
    check(library().pj_linear(byref(matrix), pointer(x_CI), len(x_CI), threads, pointer(y_CO)), where="linear")
    return y_CO
