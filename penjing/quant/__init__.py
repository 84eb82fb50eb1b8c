"""Ways to quantize a matrix, one file each. The folder is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, Protocol, cast

from penjing.errors import PenjingError


class Technique(Protocol):
    """`Spec`: a frozen dataclass of settings. `quantize(spec, weight_OI)` gives a `tensors.groups.Quantized`."""

    Spec: type[Any]

    def quantize(self, spec: Any, weight_OI: Any) -> Any: ...


def technique(name: str) -> Technique:
    """The technique in the file of that name. Raises PenjingError where there is none."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in names:
        raise PenjingError(f"no technique {name!r}", where="penjing/quant/", attempt=", ".join(names))
    return cast(Technique, importlib.import_module(f"{__name__}.{name}"))  # its own ImportError stays visible
