"""Hugging Face folders: config.json, safetensors in one file or in shards, tokenizer, chat template.

Nothing is ever unpickled. A folder made by quantizing also holds `codes-*.safetensors` (`NAME.codes`, `NAME.scales`,
`NAME.zeros`, ready for packing) and `penjing.json` with their layouts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.files import os_error
from penjing.format.safetensors_file import SafetensorsFile
from penjing.format.source import TensorInfo, files_digest

CODES_GLOB: Final = "codes-*.safetensors"
LAYOUTS_FILE: Final = "penjing.json"
_WHOLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_WRITTEN: Final = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32"}
_MAX_JSON: Final = 200_000_000


class HuggingFaceFolder:
    """An opened folder (a `Source`). Raises PenjingError on anything missing or damaged; NaN is not looked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_object(path / "config.json", missing="not a model: there is no config.json")
        if self.config.get("quantization_config"):
            method = self.config["quantization_config"]
            name = method.get("quant_method") if isinstance(method, dict) else method
            raise PenjingError(
                f"the weights are already quantized ({name})",
                where=str(path / "config.json"),
                attempt="open the model that it was made from",
            )
        self.generation = read_object(path / "generation_config.json")
        self.tokenizer_json = _read_text(path / "tokenizer.json")
        self.chat_template = _chat_template(path)
        self.files = _weight_files(path)
        self._file_of: dict[str, SafetensorsFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for file in self.files:
            self._add(SafetensorsFile(file))
        self._check_index()
        self._code_files = sorted(path.glob(CODES_GLOB))
        self._code_file_of = {name: file for file in map(SafetensorsFile, self._code_files) for name in file.tensors}
        self.layouts = self._read_layouts()

    def read(self, tensor: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Rows of a tensor (all by default), float32, a fresh array."""
        return self._file_of[tensor].read(tensor, rows)

    def packed(self, name: str) -> dict[str, NDArray[Any]]:
        """Codes, scales and perhaps zeros or a book of a canonical weight: views of the mapped file."""
        found: dict[str, NDArray[Any]] = {}
        for field in ("codes", "scales", "zeros", "book"):
            file = self._code_file_of.get(f"{name}.{field}")
            if file is not None:
                file.check_unchanged()
                found[field] = file.raw(f"{name}.{field}")
        return found

    def weights_digest(self) -> bytes:
        return files_digest([*self.files, *self._code_files])

    def _add(self, file: SafetensorsFile) -> None:
        for name, spec in file.tensors.items():
            if name in self._file_of:
                raise PenjingError(
                    f"{name} is in two files", where=str(file.path), attempt="remove the files of another model"
                )
            if spec.dtype.startswith("F8"):
                raise PenjingError(
                    f"{spec.dtype} weights are not supported",
                    where=f"{name} in {file.path}",
                    attempt="convert the model to bfloat16",
                )
            if spec.dtype in _WRITTEN:  # integers and booleans are masks and counters of old files
                self._file_of[name] = file
                self.tensors[name] = TensorInfo(spec.shape, _WRITTEN[spec.dtype])

    def _check_index(self) -> None:
        if self.files[0].name == _WHOLE:
            return
        for name, file in _weight_map(self.path).items():
            if name not in self._file_of:
                raise PenjingError(
                    f"{name} is missing", where=str(self.path / file), attempt="copy or download the file again"
                )

    def _read_layouts(self) -> Mapping[str, dict[str, Any]]:
        layouts = read_object(self.path / LAYOUTS_FILE).get("layouts", {})
        if not isinstance(layouts, dict) or not all(isinstance(value, dict) for value in layouts.values()):
            raise PenjingError(
                "unreadable layouts", where=str(self.path / LAYOUTS_FILE), attempt="quantize the model again"
            )
        for name in layouts:
            if f"{name}.codes" not in self._code_file_of or f"{name}.scales" not in self._code_file_of:
                raise PenjingError(
                    f"the codes of {name} are missing",
                    where=str(self.path / CODES_GLOB),
                    attempt="quantize the model again",
                )
        return layouts


def _weight_files(path: Path) -> list[Path]:
    """The file or the shards, in order. Their existence is checked."""
    if (path / _WHOLE).is_file():
        return [path / _WHOLE]
    if (path / _INDEX).is_file():
        shards = sorted({path / file for file in _weight_map(path).values()})
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise PenjingError(
                f"{len(missing)} of {len(shards)} weight files are missing: {', '.join(missing[:3])}",
                where=str(path),
                attempt="copy or download them too",
            )
        return shards
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise PenjingError(
            f"the weights are in a pickle file ({pickles[0]}), which can run any code; nothing is ever unpickled",
            where=str(path),
            attempt="convert it to safetensors where you trust it: load it with transformers and save_pretrained",
        )
    if (path / "adapter_model.safetensors").is_file():
        raise PenjingError(
            "an adapter without its base model", where=str(path), attempt="merge it into its base model (peft)"
        )
    raise PenjingError(f"there is no {_WHOLE}", where=str(path), attempt="copy the model again, whole")


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor to shard, from the index; a shard is a plain file name in the same folder."""
    found = read_object(path / _INDEX).get("weight_map")
    if not isinstance(found, dict) or not found or not all(_is_file_name(value) for value in found.values()):
        raise PenjingError("unreadable weight_map", where=str(path / _INDEX), attempt="copy or download it again")
    return found


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value.endswith(".safetensors") and Path(value).name == value and "\0" not in value


def _chat_template(path: Path) -> str | None:
    """From the newest of the three places it has lived in; of several templates the one named "default"."""
    text = _read_text(path / "chat_template.jinja")
    if text is not None:
        return text
    for file in ("chat_template.json", "tokenizer_config.json"):
        found = read_object(path / file).get("chat_template")
        if isinstance(found, str):
            return found
        if isinstance(found, list):
            named = _named_templates(found)
            return named.get("default", next(iter(named.values()), None))
    return None


def _named_templates(entries: Iterable[Any]) -> dict[str, str]:
    return {
        entry["name"]: entry["template"]
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
    }


def read_object(path: Path, *, missing: str = "") -> dict[str, Any]:
    """A JSON object; where there is no file: empty, or an error if `missing` says one."""
    text = _read_text(path)
    if text is None:
        if missing:
            raise PenjingError(missing, where=str(path.parent), attempt="name the folder that holds the model")
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PenjingError(f"unreadable JSON: {error}", where=str(path), attempt="copy or download it again") from error
    if not isinstance(value, dict):
        raise PenjingError("not a JSON object", where=str(path), attempt="copy or download it again")
    return value


def _read_text(path: Path) -> str | None:
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _MAX_JSON:
            raise PenjingError("too large for a text file of a model", where=str(path), attempt="copy it again")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PenjingError("not UTF-8 text", where=str(path), attempt="copy or download it again") from error
    except OSError as error:
        raise os_error(error, path) from error
