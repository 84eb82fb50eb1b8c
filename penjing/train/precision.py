"""In which precision this machine multiplies matrices, chosen by trying; and frozen weights held in it.

Shapes: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from penjing.errors import PenjingError
from penjing.format.safetensors_file import SafetensorsFile
from penjing.train.state import save_tensors

PRECISIONS = ("auto", "f32", "bf16")
#: a linear layer of a small model over 512 tokens
_SHAPE_NIO = (512, 576, 1536)
#: bfloat16 costs accuracy and conversions, so it must be this much faster
_MUST_GAIN = 1.3


def choose(precision: str, device: str) -> str:
    """`f32` or `bf16`."""
    if precision not in PRECISIONS:
        raise PenjingError(f"no precision {precision!r}", attempt=", ".join(PRECISIONS))
    if precision != "auto":
        return precision
    rates = matmul_rates(device)
    return "bf16" if rates["bf16"] > _MUST_GAIN * rates["f32"] else "f32"


@cache
def matmul_rates(device: str, repeats: int = 5) -> dict[str, float]:
    """Multiply-adds a second of a linear layer forward, in turns: the better half of the tries."""
    num, inputs, outputs = _SHAPE_NIO
    made = {
        name: (
            torch.ones(num, inputs, dtype=dtype, device=device),
            torch.ones(outputs, inputs, dtype=dtype, device=device),
        )
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16))
    }
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeats + 1):
        for name, (x_NI, weight_OI) in made.items():
            start = time.perf_counter()
            for _ in range(4):
                nn.functional.linear(x_NI, weight_OI)
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    work = 4 * num * inputs * outputs
    return {
        name: work / statistics.median_low(sorted(found[1:])[: repeats // 2 + 1]) for name, found in seconds.items()
    }


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    return torch.autocast(torch.device(device).type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def frozen_held_in(precision: str, model: nn.Module, spill: Path) -> Iterator[None]:
    """Hold frozen matrices in bfloat16 while training lasts: half the memory, and nothing to convert each step.

    Products come out as they would with float32 weights under autocast, which rounds the same weights each time. Where
    that loses bits the originals wait in the file `spill` and are put back at the end.
    """
    changed = [] if precision == "f32" else list(_frozen_matrices(model))
    lossy = {name: p.data for name, p in changed if not torch.equal(p.data, p.data.bfloat16().float())}
    if lossy:
        save_tensors(spill, lossy, {})
    names = set(lossy)
    del lossy
    for _, parameter in changed:
        parameter.data = parameter.data.bfloat16()
    try:
        yield
    finally:
        file = SafetensorsFile(spill) if names else None
        for name, parameter in changed:  # one at a time, read and not mapped: a mapped file counts as memory
            original = torch.from_numpy(file.read(name)) if file and name in names else parameter.data.float()
            parameter.data = original.to(parameter.device)
        if file:
            file.close()
        spill.unlink(missing_ok=True)


def _frozen_matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights of linear layers and embeddings: what autocast would convert anyway, and what those share."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            weight = cast(nn.Parameter, module.weight)
            if not weight.requires_grad and weight.dtype == torch.float32 and id(weight) not in seen:
                seen.add(id(weight))
                yield f"{name}.weight", weight


def _wait(device: str) -> None:
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize()
    elif kind == "mps":
        torch.mps.synchronize()
