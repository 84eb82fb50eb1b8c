"""compressed-tensors: a Hugging Face folder with packed integers, for vLLM and for transformers with that package.

Linear layers keep their codes. Embeddings, and what is not a whole number of steps of one bit width, become float16.
A reader multiplies in float16, so weights have 11 bits there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.format.hf_writer import CheckpointWriter, Shard
from penjing.format.pack import Layout
from penjing.format.safetensors_file import TensorSpec
from penjing.stages import Progress, base
from penjing.stages.exports import Codes, Exported, Weights

_FORMAT: Final = "pack-quantized"
#: bits that hold the steps of levels that are not uniform
_BITS: Final = {"ternary": 2, "book": 8}


@dataclass(frozen=True)
class _Scheme:
    bits: int
    group_size: int
    symmetric: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "group",
            "group_size": self.group_size,
        }


def export(weights: Weights, out: Path, *, force: bool, progress: Progress | None) -> Exported:
    pack = _packing()
    checkpoint = weights.checkpoint
    schemes = {source: scheme for source in weights.parts if (scheme := _scheme(weights, source)) is not None}
    step = {"stage": "export", "to": "compressed-tensors", "parent": checkpoint.digest}
    config = {key: value for key, value in weights.config.items() if key not in ("dtype", "torch_dtype")}
    config |= {"dtype": "float16", "quantization_config": _config(schemes)}
    with CheckpointWriter(out, [_shard(weights, schemes)], step=step, force=force) as writer:
        for index in writer.pending():
            with writer.shard(index) as shard:
                for done, source in enumerate(weights.parts):
                    if progress is not None:
                        progress(source, done, len(weights.parts))
                    if source not in schemes:
                        shard.write(source, weights.read(source))
                        continue
                    for name, values in _tensors(pack, source, schemes[source], weights.codes(source)).items():
                        shard.write_as_is(name, values)
        writer.write_texts(
            config=config,
            generation=checkpoint.generation,
            tokenizer_json=checkpoint.tokenizer_json,
            chat_template=checkpoint.chat_template,
            companions=checkpoint.path if checkpoint.path.is_dir() else None,
            base=base(checkpoint),
        )
        writer.finish()
    return _told(weights, schemes, out)


def _told(weights: Weights, schemes: dict[str, _Scheme], out: Path) -> Exported:
    found = Exported(out, sum(file.stat().st_size for file in out.glob("*.safetensors")), {})
    for source in (source for source in weights.parts if len(weights.shape(source)) == 2):
        scheme = schemes.get(source)
        kind = f"{scheme.bits} bits, groups of {scheme.group_size}" if scheme else "float16"
        found.types[kind] = found.types.get(kind, 0) + 1
        if scheme is None and weights.layouts(source):
            found.notes.append(f"{source}: float16, was {weights.layouts(source)[0].described}")
    return found


def _scheme(weights: Weights, source: str) -> _Scheme | None:
    """How a linear layer's codes are kept; None for what becomes float."""
    layouts = weights.layouts(source)
    if not layouts or weights.parts[source][0].name == "embed":
        return None
    found = {_Scheme(_bits(layout), layout.group_size, layout.symmetric) for layout in layouts}
    if len(found) > 1:
        return None
    scheme = found.pop()
    fits = scheme.symmetric or int(weights.codes(source).zero_ON.max()) < 1 << scheme.bits
    return scheme if fits else None


def _bits(layout: Layout) -> int:
    if layout.levels == "uniform":
        return max(layout.bits, 2)  # -1 and +1 take two
    return _BITS[layout.levels]


def _shard(weights: Weights, schemes: dict[str, _Scheme]) -> Shard:
    tensors: dict[str, TensorSpec] = {}
    for source in weights.parts:
        shape = weights.shape(source)
        if source not in schemes:
            tensors[source] = TensorSpec("F16", shape)
            continue
        scheme, prefix = schemes[source], source.removesuffix("weight")
        rows, cols = shape
        groups = cols // scheme.group_size
        tensors |= {
            f"{prefix}weight_packed": TensorSpec("I32", (rows, -(-cols * scheme.bits // 32))),
            f"{prefix}weight_scale": TensorSpec("F16", (rows, groups)),
            f"{prefix}weight_shape": TensorSpec("I64", (2,)),
        }
        if not scheme.symmetric:
            tensors[f"{prefix}weight_zero_point"] = TensorSpec("I32", (-(-rows * scheme.bits // 32), groups))
    return Shard(tensors)


def _tensors(pack: Any, source: str, scheme: _Scheme, codes: Codes) -> dict[str, NDArray[Any]]:
    import torch

    prefix, half = source.removesuffix("weight"), 1 << (scheme.bits - 1)
    value_OI, scale_ON, zero_ON = codes
    zero_point_ON = zero_ON.astype(np.int16) - half
    if not scheme.symmetric:
        value_OI = value_OI + zero_point_ON.repeat(scheme.group_size, axis=1)
    packed = {
        "weight_packed": pack(torch.from_numpy(value_OI.astype(np.int8)), scheme.bits).numpy(),
        "weight_scale": scale_ON,
        "weight_shape": np.array(value_OI.shape, np.int64),
    }
    if not scheme.symmetric:
        zero_point = torch.from_numpy(zero_point_ON.astype(np.int8))
        packed["weight_zero_point"] = pack(zero_point, scheme.bits, packed_dim=0).contiguous().numpy()
    return {prefix + name: values for name, values in packed.items()}


def _config(schemes: dict[str, _Scheme]) -> dict[str, Any]:
    modules: dict[_Scheme, list[str]] = {}
    for source, scheme in schemes.items():
        modules.setdefault(scheme, []).append(source.removesuffix(".weight"))
    groups = {
        f"group_{n}": {"targets": targets, "weights": scheme.to_json(), "format": _FORMAT}
        for n, (scheme, targets) in enumerate(modules.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [],
    }


def _packing() -> Any:
    try:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    except ImportError as error:
        raise PenjingError(
            "the compressed-tensors package is not installed, or is older than 0.20",
            where="--to compressed-tensors",
            attempt="pip install 'penjing[compressed-tensors]'",
        ) from error
    return pack_to_int32
