"""penjing: grow a language model small enough to live where your data is."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from penjing.errors import PenjingError

if TYPE_CHECKING:
    from penjing.api import Model, open

__all__ = ["Model", "PenjingError", "__version__", "open"]


def __getattr__(name: str) -> Any:
    """`Model`, `open` and the version, when they are asked for: the command line starts without them."""
    if name in ("Model", "open"):
        # by name, so that `import penjing` does not count as an import of everything below the API
        return getattr(import_module("penjing.api"), name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("penjing")
        except PackageNotFoundError:  # run from a source tree that was never installed
            return "0+unknown"
    raise AttributeError(f"module 'penjing' has no attribute {name!r}")
