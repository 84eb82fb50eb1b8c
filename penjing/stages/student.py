"""A quantized child as a model to train: every matrix that has codes computes its weight from what a technique trains.

Shapes: O outputs, I inputs, R rows of a part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from penjing.checkpoint import Checkpoint
from penjing.errors import PenjingError
from penjing.format.families import Part
from penjing.format.pack import unpack_codes
from penjing.format.source import row_indices
from penjing.measure import torch_model
from penjing.tensors.fake_quantize import product_dtype
from penjing.tensors.groups import Quantized
from penjing.train.computed import Computed, Gain, compute

#: steps: between two of these a latent goes as far at most as that many learning rates, a small part of its cell
_CONFINE_EVERY = 8


@dataclass(frozen=True)
class Student:
    """`model`: what is trained. `matrices`: by canonical name what computes each; `vectors`: by their tensor's name."""

    model: Any
    matrices: Mapping[str, Any]
    vectors: Mapping[str, Gain]

    def before_step(self, step: int) -> None:
        if step % _CONFINE_EVERY:
            return
        for matrix in self.matrices.values():
            matrix.confine_()


def student(
    child: Checkpoint, parent: Checkpoint, tunable: Callable[[Quantized, Tensor], nn.Module], vector_rate: float
) -> Student:
    """Everything is frozen but what `tunable(quantized, weight_OI of the parent)` makes, and the norms' weights."""
    model = torch_model.load(child)
    model.requires_grad_(False)
    parent_parts = {part.name: part for part in parent.parts()}
    by_source: dict[str, list[Part]] = defaultdict(list)
    for part in child.parts():
        by_source[part.source].append(part)
    matrices, vectors = {}, {}
    for source, parts in by_source.items():
        coded = [part for part in parts if part.name in child.quantized]
        for part in coded:
            weight_OI = torch.from_numpy(parent.read_part(parent_parts[part.name]))
            matrices[part.name] = tunable(read_quantized(child, part.name), weight_OI)
        if coded:
            found = _modules(model, source, parts[0].name)
            computed = Computed((matrices[part.name] for part in coded), _join(found[0], coded))
        elif _is_norm(parts[0].name):
            found = _modules(model, source, parts[0].name)
            vectors[source] = Gain(cast(Tensor, found[0].weight), vector_rate)
            computed = Computed([vectors[source]])
        else:
            continue
        for module in found:
            compute(module, computed)
    return Student(model, matrices, vectors)


def teacher(parent: Checkpoint, precision: str) -> Any:
    """The float parent, frozen; its matrices in the precision of products, but for the embedding, which adds up."""
    model = torch_model.load(parent).requires_grad_(False)
    embedding = model.get_input_embeddings().weight
    if precision == "bf16":
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight is not embedding:
                module.weight.data = module.weight.data.bfloat16()
    return model


def read_quantized(child: Checkpoint, name: str) -> Quantized:
    """The codes of a matrix as a technique gives them."""
    layout, packed = child.quantized[name], child.packed(name)
    code_OI, scale_ON, zero_ON = unpack_codes(layout, packed)
    return Quantized(
        code_ONG=torch.from_numpy(code_OI).view(layout.rows, -1, layout.group_size),
        scale_ON=torch.from_numpy(np.array(scale_ON, order="C")),
        zero_ON=None if zero_ON is None else torch.from_numpy(np.array(zero_ON, order="C")),
        bits=layout.bits,
        levels=layout.levels,
        scale_bits=layout.scale_bits,
        book_K=torch.from_numpy(np.array(packed["book"])) if layout.levels == "book" else None,
    )


def _is_norm(name: str) -> bool:
    return name.endswith("norm")


def _join(module: nn.Module, coded: list[Part]) -> Callable[[list[Tensor]], Tensor] | None:
    """How the weights of some parts become that of the module; what has no codes stays as the child has it."""
    if len(coded) == 1 and coded[0].rows is None:
        return None
    base_OI = cast(Tensor, module.weight).detach().clone()
    rows = [torch.from_numpy(row_indices(part.rows, len(base_OI)).astype(np.int64)) for part in coded]
    return partial(_joined, base_OI, rows)


def _joined(base_OI: Tensor, rows: list[Tensor], weights: list[Tensor]) -> Tensor:
    found_OI = base_OI.to(product_dtype(base_OI.device.type))
    for row_R, weight_RI in zip(rows, weights, strict=True):
        found_OI = found_OI.index_copy(0, row_R, weight_RI)
    return found_OI


def _modules(model: Any, source: str, name: str) -> list[nn.Module]:
    """The modules that use a tensor: several where it is tied. transformers renames what stands before the layers."""
    if name == "embed":
        weight = model.get_input_embeddings().weight
    elif name == "head":
        weight = model.get_output_embeddings().weight
    else:
        weight = _by_suffix(model, source)
    return [module for module in _with_weights(model) if module._parameters["weight"] is weight]


def _by_suffix(model: Any, source: str) -> Tensor:
    within = source[source.index("layers.") :] if "layers." in source else source.rsplit(".", 2)[-2] + ".weight"
    for name, parameter in model.named_parameters():
        same = name == within or name.endswith(f".{within}")
        if same and ("layers." in within or "layers." not in name):
            return cast(Tensor, parameter)
    raise PenjingError(f"transformers has no parameter for {source}", where=type(model).__name__)


def _with_weights(model: Any) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module._parameters.get("weight"), nn.Parameter))
