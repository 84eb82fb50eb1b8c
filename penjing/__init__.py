"""penjing: grow a language model small enough to live where your data is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from penjing.errors import PenjingError

try:
    __version__ = version("penjing")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["PenjingError", "__version__"]
