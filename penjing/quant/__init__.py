"""Ways to quantize a matrix, one file each. The folder is the registry."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from penjing.errors import PenjingError
from penjing.format.pack import Layout

if TYPE_CHECKING:
    import torch

    from penjing.tensors.groups import Quantized


#: what a technique's file defines, and the verb that calls it
_VERBS = {"quantize": "quantize", "change": "prepare", "tunable": "tune"}


class Technique(Protocol):
    """`Spec`: a frozen dataclass of settings. `quantize(spec, weight_OI)` gives a `tensors.groups.Quantized`.

    `Spec` has bits, group_size and symmetric, `levels` unless they are uniform, and perhaps `scale_bits`: what a
    `format.pack.Layout` needs.
    A matrix may come in several pieces of rows. Where `levels` is "book", `quantize` takes `book_K` too: the book that
    was chosen for the rows before, which these must use as well, or None.
    A technique that weighs errors takes `importance_I` as well: how much the loss minds an error in each input; or
    `hessian_II`: how it minds them together (of which importance is the diagonal). Where there is a
    `prepare(spec, hessian_II)`, `quantize` also takes what it gave as `prepared`: for all matrices and rows under that
    Hessian; it leaves `PREPARED_BYTES` a value of H. `work_bytes(spec, rows, cols)`: memory beside all that, where it
    is no small multiple of the rows.
    """

    Spec: type[Any]
    quantize: Callable[..., Quantized]


class BlockTechnique(Protocol):
    """A technique that learns the matrices of a block together, beside a `quantize` for matrices elsewhere.

    `quantize_block(specs, weights, importances, forward, inputs, targets, seed)`: settings by matrix, all weights of
    the block, the importance of each matrix's inputs, and what `tensors.learning.learn` takes; codes by matrix.
    """

    quantize_block: Callable[..., dict[str, Quantized]]


class Transformation(Protocol):
    """Weights that compute the same and are easier to quantize. `Spec`: a frozen dataclass of settings.

    `change(spec, architecture, block, weights)` gives those of a block's weights that differ, by canonical name. One
    that goes by what the loss minds takes `importances` as well. `unties(spec, architecture)`, where it is there, says
    whether the head becomes a matrix of its own.
    """

    Spec: type[Any]
    change: Callable[..., dict[str, torch.Tensor]]


class Tuning(Protocol):
    """A technique that trains what others have quantized.

    `Spec` has a `learning_rate`. `tunable(spec, quantized, weight_OI)` is a module whose parameters are trained and
    whose `forward()` is the weight; `confine_()` is called before every step, `quantized()` gives what is stored.
    `vector_rate(spec)`: how fast norms change, as a fraction of their size times the learning rate.
    `num_trained(layout)`: numbers of a matrix that are trained.
    """

    Spec: type[Any]
    tunable: Callable[..., Any]
    vector_rate: Callable[[Any], float]
    num_trained: Callable[[Layout], int]


def technique(name: str) -> Technique:
    """The technique in the file of that name. Raises PenjingError where there is none."""
    return cast(Technique, _find(name, "quantize"))


def transformation(name: str) -> Transformation:
    """The transformation in the file of that name. Raises PenjingError where there is none."""
    return cast(Transformation, _find(name, "change"))


def tuning(name: str) -> Tuning:
    """The tuning in the file of that name. Raises PenjingError where there is none."""
    return cast(Tuning, _find(name, "tunable"))


def _find(name: str, does: str) -> ModuleType:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    if name not in names:
        raise PenjingError(f"no technique {name!r}", where="penjing/quant/", attempt=", ".join(names))
    module = importlib.import_module(f"{__name__}.{name}")  # its own ImportError stays visible
    if not hasattr(module, does):
        verb = next(verb for function, verb in _VERBS.items() if hasattr(module, function))
        raise PenjingError(
            f"{name} is not a method of penjing {_VERBS[does]}",
            where=f"penjing/quant/{name}.py",
            attempt=f"penjing {verb} MODEL OUT --method {name}",
        )
    return module


def uses_importance(method: Technique) -> bool:
    return "importance_I" in inspect.signature(method.quantize).parameters


def uses_hessian(method: Technique) -> bool:
    return "hessian_II" in inspect.signature(method.quantize).parameters


def uses_book(method: Technique) -> bool:
    return "book_K" in inspect.signature(method.quantize).parameters


def prepares(method: Technique) -> bool:
    return hasattr(method, "prepare")


def learns(method: Technique) -> bool:
    """Whether it is a `BlockTechnique`."""
    return hasattr(method, "quantize_block")


def layout_for(spec: Any, rows: int, cols: int) -> Layout:
    """How a matrix that was quantized with this Spec is stored."""
    return Layout(
        kind="codes",
        rows=rows,
        cols=cols,
        bits=spec.bits,
        group_size=spec.group_size,
        symmetric=spec.symmetric,
        levels=getattr(spec, "levels", "uniform"),
        scale_bits=getattr(spec, "scale_bits", 16),
    )


def apply(
    method: Technique,
    spec: Any,
    weight_OI: torch.Tensor,
    importance_I: torch.Tensor | None,
    hessian_II: torch.Tensor | None = None,
    book_K: torch.Tensor | None = None,
    prepared: Any = None,
) -> Quantized:
    """Quantize, with what the technique weighs errors by. PenjingError if it does and there is none.

    `book_K`: of the rows before these, for techniques that choose one. `prepared`: what `prepare` gave, if anything.
    """
    asked = [importance_I] * uses_importance(method) + [hessian_II] * uses_hessian(method)
    if any(weighing is None for weighing in asked):
        name = method.quantize.__module__.rsplit(".", 1)[-1]
        raise PenjingError(
            f"{name} needs text to calibrate on", where="--method", attempt="--data FILE, or --method rtn"
        )
    known: dict[str, Any] = {"book_K": book_K} if uses_book(method) else {}
    known |= {} if prepared is None else {"prepared": prepared}
    return method.quantize(spec, weight_OI, *asked, **known)
