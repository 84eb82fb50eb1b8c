"""Ways to quantize a matrix, one file each. The folder is the registry."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from penjing.errors import PenjingError

if TYPE_CHECKING:
    import torch

    from penjing.tensors.groups import Quantized


class Technique(Protocol):
    """`Spec`: a frozen dataclass of settings. `quantize(spec, weight_OI)` gives a `tensors.groups.Quantized`.

    A technique that weighs errors takes `importance_I` as well: how much the loss minds an error in each input; or
    `hessian_II`: how it minds them together (of which importance is the diagonal).
    """

    Spec: type[Any]
    quantize: Callable[..., Quantized]


def technique(name: str) -> Technique:
    """The technique in the file of that name. Raises PenjingError where there is none."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in names:
        raise PenjingError(f"no technique {name!r}", where="penjing/quant/", attempt=", ".join(names))
    return cast(Technique, importlib.import_module(f"{__name__}.{name}"))  # its own ImportError stays visible


def uses_importance(method: Technique) -> bool:
    return "importance_I" in inspect.signature(method.quantize).parameters


def uses_hessian(method: Technique) -> bool:
    return "hessian_II" in inspect.signature(method.quantize).parameters


def apply(
    method: Technique,
    spec: Any,
    weight_OI: torch.Tensor,
    importance_I: torch.Tensor | None,
    hessian_II: torch.Tensor | None = None,
) -> Quantized:
    """Quantize, with what the technique weighs errors by. PenjingError if it does and there is none."""
    asked = [importance_I] * uses_importance(method) + [hessian_II] * uses_hessian(method)
    if any(weighing is None for weighing in asked):
        name = method.quantize.__module__.rsplit(".", 1)[-1]
        raise PenjingError(
            f"{name} needs text to calibrate on", where="--method", attempt="--data FILE, or --method rtn"
        )
    return method.quantize(spec, weight_OI, *asked)
