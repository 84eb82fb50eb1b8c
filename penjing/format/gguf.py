"""GGUF files, llama.cpp's format, seen as Hugging Face checkpoints: names, order of rows, config, tokenizer.

llama.cpp's converter changes three things, which are undone here: rows of query and key heads in architectures whose
rope turns neighbours (llama, granite, smollm3), the fused tensor of gptneox, and Gemma's norms, which hold 1 + weight.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.files import os_error
from penjing.format.architecture import Architecture
from penjing.format.families import Part, family
from penjing.format.gguf_config import MODEL_TYPES, generation_config, hf_config
from penjing.format.gguf_header import GgufHeader, GgufTensor, read_header
from penjing.format.gguf_tokenizer import tokenizer_json
from penjing.format.source import TensorInfo, files_digest, gather_rows

#: ggml types that are read, and what a child is written in; a quantized weight is rounded once more, to 11 bits
_WRITTEN: Final = {"F32": "F32", "F16": "F16", "BF16": "BF16"} | dict.fromkeys(
    ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), "F16"
)
_ROPE_TENSORS: Final = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_TURNING_NEIGHBOURS: Final = ("llama", "granite", "smollm3")
_CHUNK: Final = 1 << 22  # weights dequantized at a time


@dataclass(frozen=True)
class _Place:
    """A Hugging Face tensor in the file: row r is row order[r] (None: r) of `tensor`, plus `add`."""

    tensor: GgufTensor
    order: NDArray[np.intp] | None
    add: float


class GgufFile:
    """An opened GGUF file (a `Source`). Raises PenjingError for anything damaged or not covered."""

    layouts: Final[dict[str, dict[str, Any]]] = {}

    def __init__(self, path: Path) -> None:
        self.path = path
        self._gguf = import_gguf(path)
        header = read_header(path, {int(kind): size for kind, size in self._gguf.GGML_QUANT_SIZES.items()})
        self.files = [path]
        for tensor in header.tensors.values():
            self._check_kind(tensor)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, path) from error
        weakref.finalize(self, os.close, self._descriptor)
        factors = {
            name: self._read(tensor).tolist() for name, tensor in header.tensors.items() if name in _ROPE_TENSORS
        }
        embedding = header.tensors.get("token_embd.weight")
        if embedding is None:
            raise PenjingError("there is no token_embd.weight", where=str(path), attempt="a GGUF file of a whole model")
        tied = "output.weight" not in header.tensors
        self.config = hf_config(header.fields, vocab_size=embedding.shape[0], tied=tied, factors=factors)
        licence = header.fields.get("general.license")
        if isinstance(licence, str):
            self.config["license"] = licence
        languages = header.fields.get("general.languages")
        if isinstance(languages, list) and all(isinstance(code, str) for code in languages):
            self.config["language"] = languages
        self.generation = generation_config(header.fields)
        template = header.fields.get("tokenizer.chat_template")
        self.chat_template = template if isinstance(template, str) else None
        self.tokenizer_json = tokenizer_json(header.fields, where=str(path))
        self._places = self._find_places(header)
        self.tensors = {
            name: TensorInfo(place.tensor.shape, _WRITTEN[self._kind(place.tensor)])
            for name, place in self._places.items()
        }

    def read(self, tensor: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Rows of a tensor (all by default), float32, a fresh array."""
        place = self._places[tensor]
        if len(place.tensor.shape) == 1:
            vector = self._read(place.tensor)
            weight = vector[rows or slice(None)] if place.order is None else vector[place.order[rows or slice(None)]]
        elif place.order is None:
            weight = self._read(place.tensor, rows)
        else:
            weight = gather_rows(lambda span: self._read(place.tensor, span), place.order[rows or slice(None)])
        return weight + np.float32(place.add) if place.add else weight

    def packed(self, name: str) -> dict[str, NDArray[Any]]:
        return {}

    def weights_digest(self) -> bytes:
        return files_digest(self.files)

    def _kind(self, tensor: GgufTensor) -> str:
        return str(self._gguf.GGMLQuantizationType(tensor.kind).name)

    def _check_kind(self, tensor: GgufTensor) -> None:
        if self._kind(tensor) not in _WRITTEN:
            raise PenjingError(
                f"{self._kind(tensor)} weights are not supported",
                where=f"{tensor.name} in {self.path}",
                attempt="a file with one of " + ", ".join(_WRITTEN),
            )

    def _find_places(self, header: GgufHeader) -> dict[str, _Place]:
        arch_name = header.fields["general.architecture"]
        arch_id = next(key for key, name in self._gguf.MODEL_ARCH_NAMES.items() if name == arch_name)
        model_family = family(self.config["model_type"])
        arch = model_family.architecture(self.config)
        names = self._gguf.get_tensor_name_map(arch_id, arch.num_layers)
        orders = row_orders(arch_name, arch)
        add = -1.0 if arch_name == "gemma3" else 0.0
        places: dict[str, _Place] = {}
        for part in model_family.parts(arch):
            name = names.get_name(part.source, try_suffixes=(".weight", ".bias"))
            if name in header.tensors and part.source not in places:
                places[part.source] = self._place(header.tensors[name], part, orders, add if part.add else 0.0)
        strangers = header.tensors.keys() - {place.tensor.name for place in places.values()} - set(_ROPE_TENSORS)
        if strangers:
            raise PenjingError(
                f"{min(strangers)} has no place in a {arch_name} model",
                where=str(self.path),
                attempt=f"a model of one of these: {', '.join(MODEL_TYPES)}",
            )
        return places

    def _place(self, tensor: GgufTensor, part: Part, orders: dict[str, NDArray[np.intp]], add: float) -> _Place:
        order = orders.get(part.name.removesuffix(".bias").rsplit(".", 1)[-1])
        if order is not None and len(order) != tensor.shape[0]:
            raise PenjingError(
                f"{tensor.name} has {tensor.shape[0]} rows, the metadata says {len(order)}",
                where=str(self.path),
                attempt="convert the model again",
            )
        return _Place(tensor, order, add)

    def _read(self, tensor: GgufTensor, rows: slice | None = None) -> NDArray[np.float32]:
        """Rows of a tensor as stored, dequantized."""
        start, stop, _ = (rows or slice(None)).indices(tensor.num_rows)
        stop = max(start, stop)
        out = np.empty((stop - start, tensor.shape[-1]), np.float32)
        for begin, end in _chunks(start, stop, tensor.shape[-1]):
            data = self._pread(tensor, begin, end)
            kind = self._gguf.GGMLQuantizationType(tensor.kind)
            # scales of a damaged file may be anything, infinite too; whoever uses the weights looks for that
            with np.errstate(all="ignore"):
                out[begin - start : end - start] = self._gguf.quants.dequantize(data, kind)
        return out if len(tensor.shape) == 2 else out.reshape(-1)

    def _pread(self, tensor: GgufTensor, begin: int, end: int) -> NDArray[np.uint8]:
        size, offset = (end - begin) * tensor.row_bytes, tensor.offset + begin * tensor.row_bytes
        data = bytearray()
        while len(data) < size:
            try:
                piece = os.pread(self._descriptor, size - len(data), offset + len(data))
            except OSError as error:
                raise os_error(error, self.path) from error
            if not piece:
                raise PenjingError("the file became shorter", where=str(self.path), attempt="copy it again")
            data += piece
        return np.frombuffer(data, np.uint8).reshape(end - begin, tensor.row_bytes)


def _chunks(start: int, stop: int, row_size: int) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK // row_size)
    for begin in range(start, stop, step):
        yield begin, min(begin + step, stop)


def row_orders(arch_name: str, arch: Architecture) -> dict[str, NDArray[np.intp]]:
    """Canonical part of a layer to `order`: row r of Hugging Face's tensor is row order[r] of GGUF's."""
    if arch_name in _TURNING_NEIGHBOURS:  # GGUF has [head, pair, 2], Hugging Face [head, 2, pair]
        return {
            part: np.arange(heads * arch.head_dim).reshape(heads, -1, 2).swapaxes(1, 2).ravel()
            for part, heads in (("q", arch.num_heads), ("k", arch.num_kv_heads))
        }
    if arch_name == "gptneox":  # GGUF has [3, head, head_dim], Hugging Face [head, 3, head_dim]
        return {"q": np.arange(3 * arch.q_size).reshape(3, arch.num_heads, -1).swapaxes(0, 1).ravel()}
    return {}


def import_gguf(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise PenjingError(
            "GGUF files need the gguf package", where=str(path), attempt="pip install 'penjing[fit]'"
        ) from error
    return gguf
