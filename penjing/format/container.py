"""The `.penjing` file: one valid safetensors file, packed as the kernels read it. Its parts are told in docs/design.md.

Opening checks everything that the engine relies on, so that it can be handed pointers: which tensors there are, their
sizes, that scales and vectors are finite. Reading a file that somebody else wrote runs no code of theirs.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from penjing.errors import PenjingError
from penjing.files import AtomicFile
from penjing.format.architecture import Architecture
from penjing.format.pack import Layout
from penjing.format.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec, encode_header

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

FORMAT: Final = "penjing"
VERSION: Final = "1"
TOKENIZER: Final = "tokenizer.json.zlib"
_MAX_TOKENIZER_BYTES: Final = 256 << 20  # Gemma 3's, the largest known, has 33 MB
_COPY_BYTES: Final = 8 << 20
_AGAIN: Final = "pack the model again"
_QK_NORMS: Final = ("q_norm", "k_norm")


class Container:
    """An open `.penjing` file.

    `tensors`: names to TensorSpec, as stored. `layouts`: canonical names of matrices to Layout. Raises PenjingError on
    anything that the engine could not run.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = SafetensorsFile(path)
        try:
            self.path = self._file.path
            self.tensors: Mapping[str, TensorSpec] = self._file.tensors
            self._read_metadata(self._file.metadata)
            self._check_tensors()
            self._check_values()
        except BaseException:
            self._file.close()
            raise

    @property
    def file_bytes(self) -> int:
        return self._file.file_bytes

    @property
    def num_weights(self) -> int:
        """Weights and biases of the model; a tied matrix counts once."""
        matrices = sum(layout.rows * layout.cols for layout in self.layouts.values())
        return matrices + sum(spec.shape[0] for name, spec in self.tensors.items() if _is_vector(spec))

    @property
    def bits_per_weight(self) -> float:
        """Of everything in the file."""
        return 8 * self.file_bytes / self.num_weights

    def tensor(self, name: str) -> NDArray[Any]:
        """A stored tensor, read-only, in the map (no copy). See `check_unchanged`."""
        return self._file.raw(name)

    def matrix(self, name: str) -> dict[str, NDArray[Any]]:
        """The tensors of a matrix under the names that `pack` gives them."""
        return {suffix: self.tensor(f"{name}.{suffix}") for suffix in self.layouts[name].tensor_specs()}

    def tokenizer_json(self) -> str:
        """The text of tokenizer.json. Raises PenjingError if there is none or it is damaged."""
        if TOKENIZER not in self.tensors:
            raise PenjingError("there is no tokenizer in this file", where=str(self.path), attempt=_AGAIN)
        inflate = zlib.decompressobj()
        try:
            text = inflate.decompress(self.tensor(TOKENIZER).tobytes(), _MAX_TOKENIZER_BYTES)
            if not inflate.eof:
                raise ValueError("it is cut off or too large")
            return text.decode()
        except (zlib.error, ValueError) as error:
            raise PenjingError(f"unreadable tokenizer: {error}", where=str(self.path), attempt=_AGAIN) from error

    def bytes_by_part(self) -> dict[str, int]:
        """Every byte of the file, by what it is for; the values sum to `file_bytes`.

        `padding`: spaces at the end of the header, lanes and inputs that exist only to fill panels and groups.
        """
        parts = dict.fromkeys(("embed", "attention", "mlp", "norms", "head"), 0)
        for name, layout in self.layouts.items():
            parts[_part(name)] += layout.payload_bytes
        for name, spec in self.tensors.items():
            if _is_vector(spec):
                parts[_part(name)] += spec.nbytes
        parts["tokenizer"] = self.tensors[TOKENIZER].nbytes if TOKENIZER in self.tensors else 0
        parts["header"] = 8 + self._file.header_bytes
        return parts | {"padding": self.file_bytes - sum(parts.values())}

    def check_unchanged(self) -> None:
        """Raise PenjingError if the file changed since it was opened; call before each use of mapped tensors."""
        self._file.check_unchanged()

    def close(self) -> None:
        """Close the file; views that are still held stay valid."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_metadata(self, metadata: Mapping[str, str]) -> None:
        where = str(self.path)
        if metadata.get("format") != FORMAT:
            raise PenjingError("not a .penjing file", where=where, attempt="penjing pack MODEL OUT.penjing")
        if metadata.get("version") != VERSION:
            found = metadata.get("version")
            raise PenjingError(f"unknown version {found} of the format", where=where, attempt="use a newer penjing")
        self.architecture = Architecture.from_json(_text(metadata, "architecture", where), where=where)
        layouts: dict[str, Any] = _json(metadata, "layouts", dict, where)
        self.layouts = {name: Layout.from_fields(layouts[name], where=f"{name} in {where}") for name in layouts}
        self.chat_template: str | None = _json(metadata, "chat_template", (str, type(None)), where)
        self.generation: dict[str, Any] = _json(metadata, "generation", dict, where)
        self.provenance: dict[str, Any] = _json(metadata, "provenance", dict, where)
        self.evidence: list[dict[str, Any]] = _json(metadata, "evidence", list, where)
        if not all(isinstance(record, dict) for record in self.evidence):
            raise PenjingError("unreadable evidence", where=where, attempt=_AGAIN)

    def _check_tensors(self) -> None:
        where = str(self.path)
        if self.architecture.num_layers > len(self.tensors):  # before a table of all of them is made
            raise PenjingError("layers are missing", where=where, attempt=_AGAIN)
        shapes = self.architecture.matrix_shapes()
        if shapes.keys() != self.layouts.keys():
            odd = min(shapes.keys() ^ self.layouts.keys())
            problem = "has no layout" if odd in shapes else "has a layout but no place in the architecture"
            raise PenjingError(f"{odd} {problem}", where=where, attempt=_AGAIN)
        for name, layout in self.layouts.items():
            if (layout.rows, layout.cols) != shapes[name]:
                problem = f"{name} is {layout.rows} x {layout.cols}, the architecture says {shapes[name]}"
                raise PenjingError(problem, where=where, attempt=_AGAIN)
        biases = bias_sizes(self.architecture)
        present = [name for name in biases if name in self.tensors]
        expected = tensor_specs(self.architecture, self.layouts, biases=present, tokenizer_bytes=0)
        for name, spec in self.tensors.items():
            if name == TOKENIZER:
                if spec.dtype != "U8" or len(spec.shape) != 1:
                    raise PenjingError(f"unreadable tokenizer: {spec.dtype} {spec.shape}", where=where, attempt=_AGAIN)
            elif expected.pop(name, None) != spec:
                problem = f"{name} ({spec.dtype} {list(spec.shape)}) is not what the architecture needs"
                raise PenjingError(problem, where=where, attempt=_AGAIN)
        expected.pop(TOKENIZER, None)
        if expected:
            raise PenjingError(f"{next(iter(expected))} is missing", where=where, attempt=_AGAIN)

    def _check_values(self) -> None:
        for name, spec in self.tensors.items():
            finite = True
            if spec.dtype == "F16" and name.endswith(".scales"):
                bits = self.tensor(name).view(np.uint16)
                finite = bool(np.bitwise_and(bits, 0x7C00).max(initial=0) < 0x7C00)
            elif _is_vector(spec):
                finite = bool(np.isfinite(self.tensor(name)).all())
            if not finite:
                raise PenjingError(f"{name} has values that are not finite", where=str(self.path), attempt=_AGAIN)


def open_container(path: str | Path) -> Container:
    """Open and validate a `.penjing` file. Raises PenjingError."""
    return Container(path)


def write_container(
    path: str | Path,
    *,
    architecture: Architecture,
    layouts: Mapping[str, Layout],
    tensors: Iterable[tuple[str, NDArray[Any]]],
    biases: Collection[str] = (),
    tokenizer_json: str | None = None,
    chat_template: str | None = None,
    generation: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    evidence: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a `.penjing` file atomically; the same input gives the same bytes.

    `tensors` are (stored name, array), read once and held one at a time. A tensor may come in chunks of its first axis
    (panels), which follow each other. `biases` says which optional `NAME.bias` vectors there will be.
    """
    for name, layout in layouts.items():
        layout.check(where=name)
    tokenizer = zlib.compress(with_short_merges(tokenizer_json).encode(), 9) if tokenizer_json is not None else b""
    specs = tensor_specs(architecture, layouts, biases=biases, tokenizer_bytes=len(tokenizer))
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": architecture.to_json(),
        "layouts": _dump({name: layout.to_fields() for name, layout in layouts.items()}),
        "chat_template": _dump(chat_template),
        "generation": _dump(dict(generation or {})),
        "provenance": _dump(dict(provenance or {})),
        "evidence": _dump([dict(record) for record in evidence]),
    }
    data_bytes = sum(spec.nbytes for spec in specs.values())
    with SafetensorsWriter(path, specs, metadata, header_reserve=_reserve(data_bytes)) as writer:
        if tokenizer:
            writer.write(TOKENIZER, np.frombuffer(tokenizer, np.uint8))
        written: dict[str, int] = {}
        for name, array in tensors:
            writer.write(name, array, written.get(name, 0))
            written[name] = written.get(name, 0) + len(array)
        writer.finish(forget=True)


def replace_evidence(path: str | Path, evidence: Sequence[Mapping[str, Any]]) -> None:
    """Rewrite a file with other evidence, atomically. Tensors do not move where it fits into the header's spaces."""
    path = Path(path)
    with open_container(path) as container, AtomicFile(path) as file:
        source = container._file
        metadata = source.metadata | {"evidence": _dump([dict(record) for record in evidence])}
        header = encode_header(source.tensors, metadata, at_least=source.data_start)
        if len(header) > source.data_start:
            reserve = _reserve(source.file_bytes - source.data_start)
            header = encode_header(source.tensors, metadata, header_reserve=reserve)
        file.write_at(header, 0)
        for begin in range(source.data_start, source.file_bytes, _COPY_BYTES):
            piece = source.read_bytes(begin, min(_COPY_BYTES, source.file_bytes - begin))
            file.write_at(piece, begin - source.data_start + len(header))
        source.check_unchanged()
        file.finish(forget=True)


def with_short_merges(tokenizer_json: str) -> str:
    """A BPE's merges as "a b" instead of ["a", "b"]: `tokenizers` reads the whole in a quarter less time.

    49,000 merges: 0.13 instead of 0.18 s, a third of a first token. Left alone where a token holds a space, or looks
    like the first line of a merges.txt, which is skipped.
    """
    try:
        tokenizer = json.loads(tokenizer_json)
        pairs = tokenizer["model"]["merges"]
        merges = [" ".join(pair) for pair in pairs if isinstance(pair, list)]
        tokenizer["model"]["merges"] = merges
        text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
        text.encode()
    except (ValueError, KeyError, TypeError):
        return tokenizer_json  # not a BPE, or nothing that could be written so
    clear = all(merge.count(" ") == 1 and not merge.startswith("#version") for merge in merges)
    return text if clear and len(merges) == len(pairs) else tokenizer_json


def tensor_specs(
    architecture: Architecture, layouts: Mapping[str, Layout], *, biases: Collection[str], tokenizer_bytes: int
) -> dict[str, TensorSpec]:
    """Everything that a file stores, in the order that the engine reads it."""
    vectors = architecture.norm_sizes() | bias_sizes(architecture)
    specs: dict[str, TensorSpec] = {}
    for name in sorted([*architecture.matrix_shapes(), *architecture.norm_sizes()], key=_depth):
        if name in vectors:
            specs[name] = TensorSpec("F32", (vectors[name],))
        else:
            specs |= {f"{name}.{suffix}": spec for suffix, spec in layouts[name].tensor_specs().items()}
        if f"{name}.bias" in biases:
            specs[f"{name}.bias"] = TensorSpec("F32", (vectors[f"{name}.bias"],))
    if tokenizer_bytes:
        specs[TOKENIZER] = TensorSpec("U8", (tokenizer_bytes,))
    return specs


def bias_sizes(architecture: Architecture) -> dict[str, int]:
    """Every bias that may be there: of a matrix but the embedding, of a LayerNorm (norms of q and k are RMSNorms)."""
    sizes = {f"{name}.bias": rows for name, (rows, _) in architecture.matrix_shapes().items() if name != "embed"}
    if architecture.norm == "layer":
        norms = architecture.norm_sizes().items()
        sizes |= {f"{name}.bias": size for name, size in norms if not name.endswith(_QK_NORMS)}
    return sizes


def _depth(name: str) -> int:
    """Where in the model a weight is used: embedding, layers, final norm and head."""
    if name.startswith("layers."):
        return int(name.split(".")[1])
    return -1 if name == "embed" else 1 << 30


def _part(name: str) -> str:
    """The part of `bytes_by_part` that a canonical name belongs to."""
    name = name.removesuffix(".bias")
    if name in ("embed", "head"):
        return name
    last = name.rsplit(".", 1)[-1]
    if last.endswith("norm"):
        return "norms"
    return "attention" if last in ("q", "k", "v", "o") else "mlp"


def _is_vector(spec: TensorSpec) -> bool:
    """Norms and biases: floats of one axis (scales and weights have three)."""
    return spec.dtype == "F32" and len(spec.shape) == 1


def _reserve(data_bytes: int) -> int:
    """Spaces left for evidence: about 0.02% of the file, enough for a few records of a small model."""
    return min(max(data_bytes >> 12, 1024), 32768)


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _text(metadata: Mapping[str, str], key: str, where: str) -> str:
    if key not in metadata:
        raise PenjingError(f"no {key} in the header", where=where, attempt=_AGAIN)
    return metadata[key]


def _json(metadata: Mapping[str, str], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    try:
        value = json.loads(_text(metadata, key, where))
    except (ValueError, RecursionError) as error:
        raise PenjingError(f"unreadable {key}: {error}", where=where, attempt=_AGAIN) from error
    if not isinstance(value, kind):
        raise PenjingError(f"unreadable {key}: {type(value).__name__}", where=where, attempt=_AGAIN)
    return value
