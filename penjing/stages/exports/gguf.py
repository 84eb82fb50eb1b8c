"""gguf: one file for llama.cpp and whatever is built on it.

Codes stay what they are where a type of GGUF holds them: steps of 32 weights with a float16 scale. Matrices whose
groups do not end on blocks of 32 become float16, which is listed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.files import os_error, sync_folder
from penjing.format.gguf import import_gguf, row_orders
from penjing.format.gguf_blocks import BLOCK, block_type, pack_blocks
from penjing.format.gguf_metadata import architecture_fields, rope_factors, tokenizer_fields
from penjing.format.pack import Layout
from penjing.stages import Progress, base
from penjing.stages.exports import Exported, Weights

_ROPE_FACTORS = "rope_freqs.weight"
_QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class _Tensor:
    """A tensor as the file has it: `kind` a GGUF type, `data` its rows (bytes of blocks, or floats)."""

    name: str
    kind: str
    data: NDArray[Any]


def export(weights: Weights, out: Path, *, force: bool, progress: Progress | None) -> Exported:
    if out.suffix != ".gguf":
        raise PenjingError("the name of a GGUF file ends in .gguf", where=str(out), attempt=f"{out}.gguf")
    if out.is_dir() or (out.exists() and not force):
        raise PenjingError("it is already there", where=str(out), attempt="--force, or another name")
    gguf = import_gguf(out)
    checkpoint = weights.checkpoint
    fields = architecture_fields(checkpoint.architecture, weights.config)
    if checkpoint.tokenizer_json is not None:
        fields |= tokenizer_fields(checkpoint.tokenizer_json, checkpoint.architecture, where=checkpoint.name)
    if checkpoint.chat_template is not None:
        fields["tokenizer.chat_template"] = checkpoint.chat_template
    licence = base(checkpoint).get("licence")
    fields |= {"general.name": checkpoint.name} | ({"general.license": licence} if licence else {})
    fields["general.quantization_version"] = _QUANTIZATION_VERSION
    found = Exported(out, 0, {})
    temporary = out.with_name(f".{out.stem}.partial.gguf")
    try:
        _write(gguf, temporary, fields, _tensors(gguf, weights, fields, found, progress))
        _check(temporary, weights)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, out)
        sync_folder(out.parent)
    except OSError as error:
        raise os_error(error, out) from error
    finally:
        temporary.unlink(missing_ok=True)
    found.bytes = out.stat().st_size
    return found


def _tensors(
    gguf: Any, weights: Weights, fields: dict[str, Any], found: Exported, progress: Progress | None
) -> Iterator[_Tensor]:
    arch, arch_name = weights.checkpoint.architecture, fields["general.architecture"]
    arch_id = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch_name)
    names = gguf.get_tensor_name_map(arch_id, arch.num_layers)
    orders = row_orders(arch_name, arch)
    kinds: Counter[str] = Counter()
    for done, (source, parts) in enumerate(weights.parts.items()):
        if progress is not None:
            progress(source, done, len(weights.parts))
        order = orders.get(parts[0].name.removesuffix(".bias").rsplit(".", 1)[-1])
        tensor = _tensor(weights, source, str(names.get_name(source, try_suffixes=(".weight", ".bias"))), found)
        if tensor.data.ndim == 2:
            kinds[tensor.kind] += 1
        yield tensor if order is None else _Tensor(tensor.name, tensor.kind, _reorder(tensor.data, order))
    factors = rope_factors(arch, weights.config)
    if factors is not None:
        yield _Tensor(_ROPE_FACTORS, "F32", factors)
    found.types.update(sorted(kinds.items()))


def _reorder(data: NDArray[Any], order: NDArray[np.intp]) -> NDArray[Any]:
    out = np.empty_like(data)
    out[order] = data
    return out


def _tensor(weights: Weights, source: str, name: str, found: Exported) -> _Tensor:
    shape = weights.shape(source)
    if len(shape) == 1:  # llama.cpp adds one to Gemma's norms when it converts, which is what `add` undoes
        return _Tensor(name, "F32", weights.read(source, add=False))
    layouts = weights.layouts(source)
    if layouts:
        packed = _blocks(weights, source, layouts)
        if packed is not None:
            return _Tensor(name, *packed)
        sizes = ", ".join(sorted({layout.described for layout in layouts}))
        found.notes.append(f"{source}: float16, GGUF's blocks of {BLOCK} cannot hold {sizes}")
    value = weights.read(source, add=False)
    if np.abs(value).max(initial=0) <= np.finfo(np.float16).max:
        return _Tensor(name, "F16", value.astype(np.float16))
    return _Tensor(name, "F32", value)


def _blocks(weights: Weights, source: str, layouts: list[Layout]) -> tuple[str, NDArray[np.uint8]] | None:
    if len({layout.group_size for layout in layouts}) > 1:
        return None
    codes = weights.codes(source)
    kind = block_type(codes.step_OI, layouts[0].group_size)
    return None if kind is None else (kind, pack_blocks(kind, codes.step_OI, codes.scale_ON))


def _write(gguf: Any, path: Path, fields: dict[str, Any], tensors: Iterator[_Tensor]) -> None:
    writer = gguf.GGUFWriter(path, fields["general.architecture"])
    for key, value in fields.items():
        if key != "general.architecture":
            _add(gguf, writer, key, value)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(gguf: Any, writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _check(path: Path, weights: Weights) -> None:
    """The file says what the model is, or is not written."""
    own = weights.checkpoint.architecture
    read = open_checkpoint(path).architecture
    for name in own.__dataclass_fields__:
        mine, its = getattr(own, name), getattr(read, name)
        if name not in ("model_type", "bos_token_id", "eos_token_ids") and not _alike(mine, its):
            raise PenjingError(f"GGUF cannot say this model's {name}", where=weights.checkpoint.name, attempt="--to hf")


def _alike(mine: Any, its: Any) -> bool:
    """Numbers may have gone through float32, inverse frequencies through factors as well: a few roundings."""
    if isinstance(mine, float):
        return bool(np.isclose(mine, its, rtol=8 * np.finfo(np.float32).eps, atol=0))
    if isinstance(mine, tuple) and mine and hasattr(mine[0], "inv_freq"):
        return len(mine) == len(its) and all(
            len(a.inv_freq) == len(b.inv_freq) and _alike(a.scale, b.scale) and all(map(_alike, a.inv_freq, b.inv_freq))
            for a, b in zip(mine, its, strict=True)
        )
    return bool(mine == its)
