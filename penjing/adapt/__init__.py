"""Ways to adapt a model, one file each: the folder is the registry. `peft` does the work wherever it has the method.

A technique has a `Spec` and `prepare(spec, model, plan) -> Adapted`: it decides what is trained (`requires_grad`) and
leaves every other weight as it is.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from penjing.errors import PenjingError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a technique may need to know.

    `modules`: canonical name of a matrix or norm ("layers.0.q") to the module that holds it. `steps`: of training.
    `gradient`: fills the gradients of what has `requires_grad` from some of the training data.
    """

    modules: Mapping[str, str]
    steps: int
    seed: int = 0
    gradient: Callable[[Any], None] | None = None
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model ready to train. `adapter`: what was added is saved in peft's format, else the changed model is.

    `before_step` and `after_step` are for the loop; `penalty` is added to the loss, each step; `finish` is called when
    training is over, before anything is saved.
    """

    model: Any
    adapter: bool = True
    before_step: Callable[[int], None] | None = None
    after_step: Callable[[int], None] | None = None
    penalty: Callable[[], Any] | None = None
    finish: Callable[[], None] | None = None
    buffers: Mapping[str, Any] = field(default_factory=dict)


class Technique(Protocol):
    Spec: type[Any]
    prepare: Callable[[Any, Any, Plan], Adapted]


def techniques() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def technique(name: str) -> Technique:
    """The technique in the file of that name. Raises PenjingError where there is none."""
    if name not in techniques():
        raise PenjingError(f"no technique {name!r}", where="penjing/adapt/", attempt=", ".join(techniques()))
    return cast(Technique, importlib.import_module(f"{__name__}.{name}"))  # its own ImportError stays visible


def freeze(model: Any) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def chosen_modules(plan: Plan, parts: str) -> list[str]:
    """Modules of the layers' parts "q,v", or of all matrices of the layers for "all", once each and in order."""
    wanted = [part.strip() for part in parts.split(",") if part.strip()]
    known = sorted({name.split(".")[2] for name in plan.modules if name.startswith("layers.")})
    unknown = [part for part in wanted if part not in known and part != "all"]
    if unknown or not wanted:
        raise PenjingError(
            f"no part {', '.join(unknown) or parts!r}", where="parts", attempt=", ".join(["all", *known])
        )
    matrices = ("q", "k", "v", "o", "gate", "up", "down")
    found = [
        module
        for name, module in plan.modules.items()
        if name.startswith("layers.") and (name.split(".")[2] in (matrices if "all" in wanted else wanted))
    ]
    return list(dict.fromkeys(found))
