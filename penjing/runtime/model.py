"""A model as the engine takes it: every array checked against its layout, described by pointers, kept alive.

The engine reads what it is pointed to and cannot tell how long an array is, so nothing gets past here unchecked.
"""

from __future__ import annotations

import ctypes
import functools
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.format.architecture import LAYER_MATRICES, LAYER_NORMS, Architecture
from penjing.format.pack import Layout
from penjing.format.safetensors_file import VIEWS
from penjing.runtime import binding

Arrays = Mapping[str, NDArray[Any]]
_AGAIN: Final = "pack the model again"


class Model:
    """pj_model with the arrays it points to. `close` it after its sessions.

    layouts: canonical matrix names to Layout. tensors: stored names (`NAME.codes`, `NAME.scales`, `NAME.zeros`,
    `NAME.book`, `NAME.weight`, norms and biases) to arrays, exactly those that the architecture and the layouts ask
    for; norms' and matrices' biases are optional. Raises PenjingError for anything that the engine could not run.
    """

    def __init__(
        self, architecture: Architecture, layouts: Mapping[str, Layout], tensors: Arrays, *, where: str
    ) -> None:
        self.handle = ctypes.c_void_p()
        architecture.validate(where=where)
        self.architecture = architecture
        self._keep: list[Any] = []
        self._left = dict(tensors)
        self._tensors, self._layouts = dict(tensors), dict(layouts)
        self._where = where
        description = self._describe(layouts)
        if self._left:
            raise PenjingError(f"{min(self._left)} has no place in the architecture", where=where, attempt=_AGAIN)
        create = binding.library().pj_model_create
        binding.check(create(ctypes.byref(description), ctypes.byref(self.handle)), where=where)

    def close(self) -> None:
        """Free the engine's side and let the arrays go."""
        handle, self.handle = self.handle, ctypes.c_void_p()
        if handle:
            binding.library().pj_model_free(handle)
        self._keep.clear()
        self._tensors.clear()

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over all that its answers depend on: architecture, layouts and every array."""
        import hashlib  # OpenSSL, which only saved prefixes need

        layouts = {name: layout.to_fields() for name, layout in self._layouts.items()}
        digest = hashlib.sha256(self.architecture.to_json().encode())
        digest.update(json.dumps(layouts, sort_keys=True).encode())
        for name, array in sorted(self._tensors.items()):
            digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def _describe(self, layouts: Mapping[str, Layout]) -> binding.ModelDesc:
        arch = self.architecture
        shapes, norms = arch.matrix_shapes(), arch.norm_sizes()
        if shapes.keys() != layouts.keys():
            odd = min(shapes.keys() ^ layouts.keys())
            raise PenjingError(f"{odd}: a layout is missing or too many", where=self._where, attempt=_AGAIN)
        description = self._sizes()
        description.embed = self._matrix("embed", layouts["embed"])
        if not arch.tied:
            description.head = self._matrix("head", layouts["head"])
        description.final_norm = self._norm("final_norm", norms["final_norm"])
        layers = (binding.Layer * arch.num_layers)()
        for n, layer in enumerate(layers):
            for part in LAYER_MATRICES:
                if (name := f"layers.{n}.{part}") in shapes:
                    setattr(layer, part, self._matrix(name, layouts[name]))
            for part in LAYER_NORMS:
                if (name := f"layers.{n}.{part}") in norms:
                    setattr(layer, part, self._norm(name, norms[name]))
            layer.rope, layer.window = arch.layer_rope[n], arch.layer_window[n]
        description.layers = layers
        self._keep.append(layers)
        return description

    def _sizes(self) -> binding.ModelDesc:
        arch = self.architecture
        if len(arch.ropes) > binding.MAX_ROPES:
            fact = f"{len(arch.ropes)} rotary embeddings, where the engine knows {binding.MAX_ROPES}"
            raise PenjingError(fact, where=self._where)
        description = binding.ModelDesc(
            struct_size=ctypes.sizeof(binding.ModelDesc),
            layer_norm=arch.norm == "layer",
            qk_norm=binding.QK_NORMS[arch.qk_norm],
            parallel=arch.parallel,
            activation=binding.ACTIVATIONS[arch.activation],
            num_ropes=len(arch.ropes),
        )
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            setattr(description, name, getattr(arch, name))
        for name in ("head_dim", "norm_eps", "attention_scale", "embedding_scale", "residual_scale", "logit_scale"):
            setattr(description, name, getattr(arch, name))
        for index, rope in enumerate(arch.ropes):
            inv_freq = np.array(rope.inv_freq, np.float32)
            self._keep.append(inv_freq)
            description.ropes[index] = binding.Rope(binding.pointer(inv_freq), 2 * len(inv_freq), rope.scale)
        return description

    def _matrix(self, name: str, layout: Layout) -> binding.Matrix:
        layout.check(where=name)
        matrix = binding.Matrix(
            kind=binding.KINDS[layout.kind],
            rows=layout.rows,
            cols=layout.cols,
            bits=layout.bits,
            group_size=layout.group_size,
            levels=binding.LEVELS[layout.levels],
            scale_bits=layout.scale_bits if layout.kind == "codes" else 0,
            bias=None if name == "embed" else self._optional(f"{name}.bias", layout.rows),
        )
        for suffix, spec in layout.tensor_specs().items():
            address = self._take(f"{name}.{suffix}", VIEWS[spec.dtype], spec.shape)
            setattr(matrix, "data" if suffix in ("codes", "weight") else suffix, address)
        return matrix

    def _norm(self, name: str, size: int) -> binding.Norm:
        return binding.Norm(self._take(name, np.dtype("<f4"), (size,)), self._optional(f"{name}.bias", size))

    def _optional(self, name: str, size: int) -> int | None:
        return self._take(name, np.dtype("<f4"), (size,)) if name in self._left else None

    def _take(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> int | None:
        """The address of an array that is exactly what the engine will read."""
        array = self._left.pop(name, None)
        if array is None:
            raise PenjingError(f"{name} is missing", where=self._where, attempt=_AGAIN)
        if array.dtype != dtype or array.shape != shape:
            fact = f"{name} is {array.dtype} {array.shape}, where {dtype} {shape} fits"
            raise PenjingError(fact, where=self._where, attempt=_AGAIN)
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise PenjingError(f"{name} does not lie in one aligned piece", where=self._where, attempt=_AGAIN)
        self._keep.append(array)
        return binding.pointer(array)
