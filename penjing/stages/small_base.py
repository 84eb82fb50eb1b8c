"""A quantized checkpoint as a transformers model whose linear layers stay codes: small in memory from the beginning."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device

from penjing.adapt.qlora import CodesLinear
from penjing.checkpoint import Checkpoint
from penjing.errors import PenjingError
from penjing.format.families import Part
from penjing.format.pack import unpack_codes
from penjing.measure.torch_model import model_class
from penjing.tensors.groups import Quantized


def load_small(checkpoint: Checkpoint) -> Any:
    """Matrices of layers as codes, what else there is as bfloat16 (matrices) or float32. Raises PenjingError."""
    inside = [
        part for part in checkpoint.parts() if part.name.startswith("layers.") and part.name in checkpoint.quantized
    ]
    if not inside:
        raise PenjingError(
            "qlora needs a quantized base", where=checkpoint.name, attempt="penjing quantize first, or --method lora"
        )
    if any(part.rows is not None for part in inside):
        raise PenjingError("its matrices are fused", where=checkpoint.name, attempt="--method lora")
    kind, config = model_class(checkpoint)
    with init_empty_weights(include_buffers=False):
        model = kind(config)
    model.tie_weights()
    done = {part.source for part in inside}
    for part in inside:
        _put(checkpoint, part, model)
    for name in checkpoint.tensors:
        if name not in done and not _is_bias_of_codes(name, done):
            value = torch.from_numpy(checkpoint.read(name))
            value = value.bfloat16() if value.ndim == 2 else value
            set_module_tensor_to_device(model, name, "cpu", value=value, dtype=value.dtype)
    model.tie_weights()
    left = [name for name, p in model.named_parameters() if p.is_meta]
    if left:
        raise PenjingError(f"{left[0]} is not in the checkpoint", where=checkpoint.name, attempt="--method lora")
    return model.requires_grad_(False).eval()


def _is_bias_of_codes(name: str, done: set[str]) -> bool:
    return name.endswith(".bias") and f"{name.removesuffix('.bias')}.weight" in done


def _put(checkpoint: Checkpoint, part: Part, model: Any) -> None:
    place = part.source.removesuffix(".weight")
    bias = f"{place}.bias"
    bias_O = torch.from_numpy(checkpoint.read(bias)) if bias in checkpoint.tensors else None
    parent, _, name = place.rpartition(".")
    setattr(model.get_submodule(parent), name, CodesLinear(_quantized(checkpoint, part.name), bias_O))


def _quantized(checkpoint: Checkpoint, name: str) -> Quantized:
    layout, packed = checkpoint.quantized[name], checkpoint.packed(name)
    code_OI, scale_ON, zero_ON = unpack_codes(layout, packed)
    return Quantized(
        code_ONG=torch.from_numpy(code_OI).view(len(code_OI), -1, layout.group_size),
        scale_ON=torch.from_numpy(scale_ON),
        zero_ON=None if zero_ON is None else torch.from_numpy(zero_ON),
        bits=layout.bits,
        levels=layout.levels,
        book_K=torch.from_numpy(packed["book"].copy()).flatten() if "book" in packed else None,
    )
