"""Where training stands, in one file that is whole or not there: so a killed run goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penjing.errors import PenjingError
from penjing.files import os_error
from penjing.format.safetensors_file import VIEWS, SafetensorsFile, SafetensorsWriter, TensorSpec
from penjing.train.parallel import full, like

_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
_OF_NAME = {name: dtype for dtype, name in _DTYPES.items()}
#: a record is one string of the file's metadata under this key
_RECORD = "record"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any], *, write: bool = True) -> None:
    """Write tensors and a JSON record atomically, one tensor brought to the CPU at a time.

    Where tensors are spread over processes all of them have to call this, and the first one writes (`write`).
    """
    if not write:
        for tensor in tensors.values():
            full(tensor)
        return
    specs = {name: TensorSpec(_DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise os_error(error, path.parent) from error
    with SafetensorsWriter(path, specs, {_RECORD: json.dumps(record, sort_keys=True)}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, _view(tensor, specs[name].dtype))
        writer.finish()


def read_record(path: Path) -> dict[str, Any]:
    with SafetensorsFile(path) as file:
        return _record(file)


def load_tensors(path: Path, into: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a file. Those that `into` names are copied there and not returned."""
    found: dict[str, Tensor] = {}
    with SafetensorsFile(path) as file:
        for name, spec in file.tensors.items():
            tensor = torch.from_numpy(file.raw(name).copy()).view(_OF_NAME[spec.dtype])
            if into is None or name not in into:
                found[name] = tensor
            elif into[name].shape != tensor.shape:
                raise PenjingError(
                    f"{name} is {tuple(tensor.shape)}, in the model {tuple(into[name].shape)}", where=str(path)
                )
            else:
                with torch.no_grad():
                    into[name].copy_(like(tensor, into[name]))
        return found, _record(file)


def digest(tensor: Tensor) -> str:
    """sha256 of a tensor's type, shape and bytes."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    found.update(_bytes(tensor).data)
    return found.hexdigest()


def digest_all(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    return {name: digest(tensor) for name, tensor in named}


def digest_of(digests: Mapping[str, str]) -> str:
    """One digest of many."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _record(file: SafetensorsFile) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.metadata[_RECORD])
    except (KeyError, ValueError) as error:
        raise PenjingError("not a state of training", where=str(file.path), attempt="another folder") from error
    return found


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    flat = full(tensor.detach()).cpu().contiguous().flatten()
    found: NDArray[np.uint8] = flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)
    return found


def _view(tensor: Tensor, dtype: str) -> NDArray[Any]:
    return _bytes(tensor).view(VIEWS[dtype]).reshape(tuple(tensor.shape))
