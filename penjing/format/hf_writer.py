"""A child checkpoint: a Hugging Face folder, written shard by shard into `OUT.partial`, renamed to OUT when complete.

    model-00001-of-000NN.safetensors   weights in float, as transformers reads them
    codes-00001-of-000NN.safetensors   packed codes of the same shard's quantized matrices: NAME.codes, .scales, …
    model.safetensors.index.json, config.json, generation_config.json, tokenizer.json, tokenizer_config.json, …
    penjing.json                       "layouts": {name: Layout}, "base": the model that it all began with

Weights are rounded to the parent's dtype; codes are exact. For SmolLM2-135M at 4 and 8 bits, perplexity from rounded
floats is +0.01% (float16) and -0.08% (bfloat16) of that from the codes, so float32 would only cost disk.

A run that is killed leaves `OUT.partial` with whole shards only, and `progress.json` saying which of them are
finished and of which step. The same step continues there, another one starts anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.files import lock, os_error, sync_folder, write_file
from penjing.format.pack import FLOAT_DTYPES, Layout, round_floats
from penjing.format.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

PROGRESS: Final = "progress.json"
LAYOUTS: Final = "penjing.json"
#: files beside the weights that a child has as its parent has them
COMPANIONS: Final = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
)
_KINDS: Final = {dtype: kind for kind, dtype in FLOAT_DTYPES.items()}


@dataclass(frozen=True)
class Shard:
    """What one pair of files holds: weights under Hugging Face's names, codes under canonical names."""

    tensors: Mapping[str, TensorSpec]
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    def code_specs(self) -> dict[str, TensorSpec]:
        return {
            f"{name}.{suffix}": spec
            for name, layout in self.layouts.items()
            for suffix, spec in layout.tensor_specs().items()
        }


class ShardWriter:
    """An open shard: rows in any order, each once."""

    def __init__(self, shard: Shard, weights: SafetensorsWriter, codes: SafetensorsWriter | None) -> None:
        self._shard, self._weights, self._codes = shard, weights, codes

    def write(self, tensor: str, rows: NDArray[np.float32], start_row: int = 0) -> None:
        """Rows of a weight, rounded to the dtype of the shard. PenjingError if they do not fit it."""
        kind = _KINDS[self._shard.tensors[tensor].dtype]
        self._weights.write(tensor, round_floats(rows, kind, where=tensor), start_row)

    def write_as_is(self, tensor: str, values: NDArray[Any]) -> None:
        """A whole tensor that is already of the shard's dtype, integers too."""
        self._weights.write(tensor, values)

    def write_codes(self, name: str, packed: Mapping[str, NDArray[Any]], start_panel: int = 0) -> None:
        """Panels of a matrix as `pack_codes` gives them; its book, if it has one, counts with the first."""
        if self._codes is None:
            raise ValueError(f"{name}: this shard has no codes")
        for suffix, array in packed.items():
            if suffix != "book" or start_panel == 0:
                self._codes.write(f"{name}.{suffix}", array, start_panel)


class CheckpointWriter:
    """Writes a child folder. Leaving it without `finish` keeps what is finished for the next run of the same step.

    `step` says what is being done to which parent (JSON): its digest decides whether a run continues an earlier one.
    An OUT that exists is an error, unless it is an empty folder, or `force` and it is a checkpoint.
    """

    def __init__(self, out: Path, shards: Sequence[Shard], *, step: Mapping[str, Any], force: bool = False) -> None:
        self.out = Path(out)
        self.folder = self.out.with_name(f"{self.out.name}.partial")
        self._shards = shards
        self._force = force
        self._finished: list[int] = []
        self._step = hashlib.sha256(json.dumps(step, sort_keys=True, default=str).encode()).hexdigest()
        check_free(self.out, force=force)
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, self.folder) from error
        try:
            lock(self._lock, self.folder)
            self._resume()
        except OSError as error:
            self.close()
            raise os_error(error, self.folder) from error
        except BaseException:
            self.close()
            raise

    def pending(self) -> list[int]:
        """Indices of the shards that are still to be written."""
        return [index for index in range(len(self._shards)) if index not in self._finished]

    @contextmanager
    def shard(self, index: int) -> Iterator[ShardWriter]:
        """Write one shard; it counts as finished when the block ends well."""
        shard = self._shards[index]
        codes = shard.code_specs()
        weights_path, codes_path = self.folder / self._name("model", index), self.folder / self._name("codes", index)
        with SafetensorsWriter(weights_path, shard.tensors, {"format": "pt"}) as weights:
            if codes:
                with SafetensorsWriter(codes_path, codes) as code_writer:
                    yield ShardWriter(shard, weights, code_writer)
                    code_writer.finish()
            else:
                yield ShardWriter(shard, weights, None)
            weights.finish()
        self._finished.append(index)
        self._save_progress()

    def read(self, tensor: str, rows: slice) -> NDArray[np.float32]:
        """Rows of a weight in a finished shard, as a child that is opened has them."""
        index = next(n for n in self._finished if tensor in self._shards[n].tensors)
        with SafetensorsFile(self.folder / self._name("model", index)) as file:
            return file.read(tensor, rows)

    def write_texts(
        self,
        *,
        config: Mapping[str, Any],
        generation: Mapping[str, Any],
        tokenizer_json: str | None,
        chat_template: str | None,
        base: Mapping[str, Any],
        companions: Path | None = None,
    ) -> None:
        """Everything beside the weights. `companions`: the parent's folder, whose `COMPANIONS` are copied."""
        dtype = {} if {"dtype", "torch_dtype"} & config.keys() else {"dtype": self._main_dtype()}
        self._write_json("config.json", dict(config) | dtype)
        if generation:
            self._write_json("generation_config.json", generation)
        if tokenizer_json is not None:
            write_file(self.folder / "tokenizer.json", tokenizer_json.encode())
        for name in COMPANIONS:
            if companions is not None and (companions / name).is_file():
                write_file(self.folder / name, (companions / name).read_bytes())
        if tokenizer_json is not None and not (self.folder / "tokenizer_config.json").exists():
            self._write_json("tokenizer_config.json", tokenizer_config(tokenizer_json, config, chat_template))
        self._write_tables(base)

    def finish(self) -> None:
        """Let the folder appear as OUT."""
        if self.pending():
            raise ValueError(f"{len(self.pending())} shards were not written")
        check_free(self.out, force=self._force)
        try:
            (self.folder / PROGRESS).unlink()
            sync_folder(self.folder)
            replaced = self.out.with_name(f".{self.out.name}.replaced")
            if self.out.exists():
                shutil.rmtree(replaced, ignore_errors=True)  # of a run that was killed two lines further on
                os.rename(self.out, replaced)
            os.rename(self.folder, self.out)
            sync_folder(self.out.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except OSError as error:
            raise os_error(error, self.out) from error

    def abandon(self) -> None:
        """Remove the working folder where nothing in it is finished."""
        if not self._finished:
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Let another process go on with what is finished."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _name(self, kind: str, index: int) -> str:
        return f"{kind}-{index + 1:05}-of-{len(self._shards):05}.safetensors"

    def _resume(self) -> None:
        """Continue where the same step was, else clear the folder."""
        try:
            progress = json.loads((self.folder / PROGRESS).read_text())
            if progress["step"] == self._step:
                self._finished = [index for index in progress["finished"] if self._is_there(index)]
                return
        except (OSError, ValueError, LookupError, TypeError):
            pass  # no progress that can be read is no progress
        ours = any((self.folder / name).exists() for name in (PROGRESS, LAYOUTS))
        if not ours and any(self.folder.iterdir()):
            raise PenjingError(
                "the working folder holds files that are not penjing's", where=str(self.folder), attempt="remove it"
            )
        for entry in self.folder.iterdir():
            if entry.name != PROGRESS:
                entry.unlink()
        self._save_progress()

    def _is_there(self, index: int) -> bool:
        kinds = ["model", "codes"] if self._shards[index].layouts else ["model"]
        return all((self.folder / self._name(kind, index)).is_file() for kind in kinds)

    def _save_progress(self) -> None:
        self._write_json(PROGRESS, {"step": self._step, "finished": self._finished})

    def _main_dtype(self) -> str:
        """Of most of the bytes, as a config says it."""
        sizes = {"float32": 0, "float16": 0, "bfloat16": 0}
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        for spec in (spec for shard in self._shards for spec in shard.tensors.values() if spec.dtype in names):
            sizes[names[spec.dtype]] += spec.nbytes
        return max(sizes, key=lambda name: sizes[name])

    def _write_tables(self, base: Mapping[str, Any]) -> None:
        """What is in which file: for transformers, and for penjing."""
        weight_map = {name: self._name("model", n) for n, shard in enumerate(self._shards) for name in shard.tensors}
        size = sum(spec.nbytes for shard in self._shards for spec in shard.tensors.values())
        self._write_json("model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})
        layouts = {name: layout.to_fields() for shard in self._shards for name, layout in shard.layouts.items()}
        own = {"format": "penjing-checkpoint", "version": 1, "base": dict(base), "layouts": layouts}
        self._write_json(LAYOUTS, own)

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        write_file(self.folder / name, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def check_free(out: Path, *, force: bool) -> None:
    """Raise PenjingError if OUT is there and must not be replaced."""
    try:
        if not out.exists() and not out.is_symlink():
            return
        if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
            return
    except OSError as error:
        raise os_error(error, out) from error
    if not force:
        raise PenjingError("it is already there", where=str(out), attempt="--force, or another name")
    if not (out / "config.json").is_file():
        raise PenjingError("it is not a checkpoint, so it is not replaced", where=str(out), attempt="another name")


def tokenizer_config(tokenizer_json: str, config: Mapping[str, Any], chat_template: str | None) -> dict[str, Any]:
    """What transformers needs beside a tokenizer.json that came without its config."""
    tokenizer = json.loads(tokenizer_json)
    texts = {token["id"]: token["content"] for token in tokenizer.get("added_tokens", [])}
    made: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role in ("bos", "eos", "pad", "unk"):
        ids = config.get(f"{role}_token_id")
        first = ids[0] if isinstance(ids, list) and ids else ids
        if first in texts:
            made[f"{role}_token"] = texts[first]
    if chat_template is not None:
        made["chat_template"] = chat_template
    return made
