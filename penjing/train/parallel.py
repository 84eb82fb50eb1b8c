"""Several processes train one model: what the loop has to ask when it is not alone.

`torchrun` and `accelerate launch` both say who a process is through RANK and WORLD_SIZE. `ddp`: every process has the
whole model and some rows of each batch. `fsdp`: likewise, but weights, gradients and optimizer states are spread over
the processes (FSDP2, arXiv:2304.11277). `tensor`: every process sees all rows and computes its share of each matrix
(Megatron, arXiv:1909.08053), as the model's own plan in transformers says.

States are saved whole, by the first process: they can be taken up by another number of processes, or by another way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from penjing.errors import PenjingError
from penjing.train.batch import Batch
from penjing.train.forward import unwrapped

Way = Literal["ddp", "fsdp", "tensor"]


class Whole(nn.Module):
    """A model as the thing that work is done with, so that wrappers see where forward begins and ends."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[Any], Any]) -> Any:
        return work(self.model)


class Processes:
    """This process among those that train one model; alone, all of it is as if it were not there."""

    def __init__(self, way: Way, device: str) -> None:
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        self.way, self.device = way, device
        if way not in ("ddp", "fsdp", "tensor"):
            raise PenjingError(f"no way to train in parallel called {way!r}", attempt="ddp, fsdp, tensor")
        self._mesh: DeviceMesh | None = None
        self._wrapped: nn.Module | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def splits_weights(self) -> bool:
        return self.world > 1 and self.way != "ddp"

    @contextmanager
    def started(self) -> Iterator[None]:
        """The group of processes, unless the caller has one already."""
        own = self.world > 1 and not dist.is_initialized()
        if own:
            dist.init_process_group("nccl" if self.device.startswith("cuda") else "gloo")
        try:
            if self.world > 1:
                self._mesh = init_device_mesh(torch.device(self.device).type, (self.world,))
            yield
            self.wait()  # the first process keeps what the others meet through: it must not leave before them
        finally:
            if own:
                dist.destroy_process_group()

    def wrap(self, model: Any) -> Callable[[Callable[[Any], Any]], Any]:
        """Spread a model over the processes, in place; what is returned runs work on it."""
        whole = Whole(model)
        if self.world > 1 and self.way == "ddp":
            whole = DistributedDataParallel(whole, broadcast_buffers=False)  # type: ignore[assignment]
        elif self.world > 1 and self.way == "fsdp":
            for layer in _layers(model):
                fully_shard(layer, mesh=self._mesh)
            fully_shard(whole, mesh=self._mesh)
        elif self.world > 1:
            assert self._mesh is not None
            parallelize_module(unwrapped(model).base_model, self._mesh, _plan(model, self.world))
        self._wrapped = whole
        return whole

    def share(self, batch: Batch) -> Batch:
        """The rows of a batch that this process computes: as many in each, filled up with rows that count nothing."""
        if self.world == 1 or self.way == "tensor":
            return batch
        num_rows = len(batch.token_BT)
        wanted = torch.arange(self.rank, -(-num_rows // self.world) * self.world, self.world)
        mine = batch.take(wanted.clamp_max(num_rows - 1))
        mine.weight_BT[wanted >= num_rows] = 0.0
        return mine

    def without_exchange(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients of all pieces but the last stay in this process."""
        if isinstance(self._wrapped, DistributedDataParallel) and not last:
            return self._wrapped.no_sync()
        if isinstance(self._wrapped, FSDPModule):
            self._wrapped.set_requires_gradient_sync(last)
        return nullcontext()

    def gradient_factor(self) -> float:
        """Both average over processes what the loop wants summed."""
        return float(self.world) if self.world > 1 and self.way != "tensor" else 1.0

    def sum(self, *values: float) -> list[float]:
        """Over all processes that saw different rows."""
        if self.world == 1 or self.way == "tensor":
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        found = found if self.device == "cpu" else found.float().to(self.device)
        dist.all_reduce(found)
        return [float(value) for value in found]

    def same(self, value: float) -> float:
        """What the first process says: clocks differ, decisions must not."""
        if self.world == 1:
            return value
        found = torch.tensor([value], dtype=torch.float32, device=self.device)
        dist.broadcast(found, 0)
        return float(found)

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def norm(self, grads: Mapping[str, Tensor]) -> float:
        """Of all gradients as one vector, wherever its parts are."""
        spread = [local(grad) for grad in grads.values() if isinstance(grad, DTensor)]
        here = [grad for grad in grads.values() if not isinstance(grad, DTensor)]
        square = float(nn.utils.get_total_norm(here)) ** 2 if here else 0.0
        if spread:
            part = torch.stack([torch.linalg.vector_norm(grad) for grad in spread]).square().sum()
            dist.all_reduce(part)
            square += float(part)
        return float(square**0.5)


def full(tensor: Tensor) -> Tensor:
    """All of a tensor; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(whole: Tensor, parameter: Tensor) -> Tensor:
    """A tensor that every process has, spread as `parameter` is (scalars stay)."""
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    return distribute_tensor(whole.to(parameter.device), parameter.device_mesh, parameter.placements)


def _layers(model: Any) -> list[nn.Module]:
    names = set(getattr(unwrapped(model), "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _plan(model: Any, world: int) -> dict[str, ParallelStyle]:
    """transformers' plan for the model's body, as torch says it."""
    config = unwrapped(model).config
    plan = getattr(config, "base_model_tp_plan", None)
    if not plan or hasattr(model, "peft_config"):
        raise PenjingError(
            "this model cannot be computed in shares of its matrices",
            where=type(model).__name__,
            attempt="ddp or fsdp",
        )
    if config.num_key_value_heads % world or config.num_attention_heads % world:
        raise PenjingError(
            f"{config.num_key_value_heads} key heads cannot be shared by {world} processes", attempt="ddp or fsdp"
        )
    styles = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    unknown = sorted({style for style in plan.values() if style not in styles})
    if unknown:
        raise PenjingError(f"its plan has {', '.join(unknown)}", where=type(model).__name__, attempt="ddp or fsdp")
    return {name: styles[style]() for name, style in plan.items()}
