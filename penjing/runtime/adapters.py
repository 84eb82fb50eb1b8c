"""Adapters as the engine takes them: loaded by name, each sequence using one or none."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Final

import numpy as np

from penjing.errors import PenjingError
from penjing.format.adapter import Adapter, check_adapter
from penjing.format.architecture import Architecture
from penjing.format.pack import Layout, pack_float
from penjing.runtime import binding

_KINDS: Final = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16"}


class Adapters:
    """The adapters of one session. Not for several threads at once: the session's lock is held by its caller."""

    def __init__(self, num_sequences: int) -> None:
        self._loaded: dict[str, _Loaded] = {}
        self._used: list[str | None] = [None] * num_sequences

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def used(self, sequence: int) -> str | None:
        return self._used[sequence]

    def digest(self, sequence: int) -> str:
        """Of the adapter that a sequence uses, "" for none."""
        name = self._used[sequence]
        return "" if name is None else self._loaded[name].digest

    def load(
        self, name: str, adapter: Adapter, model: ctypes.c_void_p, architecture: Architecture, *, where: str
    ) -> None:
        if name in self._loaded:
            raise PenjingError(f"an adapter called {name!r} is loaded", where=where, attempt="another name=")
        self._loaded[name] = _Loaded(adapter, model, architecture, where=where)

    def unload(self, name: str, *, where: str) -> None:
        loaded = self._named(name, where)
        if name in self._used:
            fact = f"sequence {self._used.index(name)} uses the adapter {name!r}"
            raise PenjingError(fact, where=where, attempt="use_adapter(None) first")
        del self._loaded[name]
        loaded.close()

    def handle(self, name: str | None, *, where: str) -> ctypes.c_void_p | None:
        return None if name is None else self._named(name, where).handle

    def use(self, name: str | None, sequence: int) -> None:
        self._used[sequence] = name

    def close(self) -> None:
        for loaded in self._loaded.values():
            loaded.close()
        self._loaded.clear()

    def _named(self, name: str, where: str) -> _Loaded:
        if name not in self._loaded:
            known = ", ".join(self._loaded) or "load_adapter(path)"
            raise PenjingError(f"no adapter called {name!r} is loaded", where=where, attempt=known)
        return self._loaded[name]


class _Loaded:
    """pj_adapter with the arrays it points to."""

    def __init__(self, adapter: Adapter, model: ctypes.c_void_p, architecture: Architecture, *, where: str) -> None:
        self.handle = ctypes.c_void_p()
        self.digest = adapter.digest
        self._keep: list[Any] = []
        check_adapter(adapter, architecture, where=where)  # the engine cannot tell how long an array is
        layers = (binding.AdapterLayer * architecture.num_layers)()
        for name, addition in adapter.additions.items():
            _, number, part = name.split(".")
            kind = _KINDS[addition.a.dtype]
            outputs, rank = addition.b.shape
            layout = Layout(kind=kind, rows=outputs, cols=rank)  # type: ignore[arg-type]
            a = np.ascontiguousarray(addition.a)
            b = pack_float(layout, addition.b.astype(np.float32), where=name)["weight"]
            self._keep += [a, b]
            lora = binding.Lora(binding.pointer(a), binding.pointer(b), binding.KINDS[kind], rank)
            setattr(layers[int(number)], part, lora)
        create = binding.library().pj_adapter_create
        binding.check(create(model, layers, ctypes.byref(self.handle)), where=where)

    def close(self) -> None:
        handle, self.handle = self.handle, ctypes.c_void_p()
        if handle:
            binding.library().pj_adapter_free(handle)
        self._keep.clear()


def default_name(path: str | Path) -> str:
    """A file's name without its ending, a folder's whole."""
    path = Path(path).resolve()
    return path.name if path.is_dir() else path.stem
