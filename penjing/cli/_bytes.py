"""Where the bytes of a model's files are, whatever kind of file it is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from penjing.checkpoint import Checkpoint

_WIDTH: Final = {"F32": 4, "F16": 2, "BF16": 2}
_MLP: Final = ("gate", "up", "down")


def bytes_by_part(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of embed, attention, mlp, norms, head and the rest. They sum to `checkpoint.file_bytes`."""
    if checkpoint.path.suffix == ".penjing":
        from penjing.format.container import open_container

        with open_container(checkpoint.path) as container:
            return container.bytes_by_part()
    sizes = _gguf(checkpoint) if checkpoint.path.is_file() else _folder(checkpoint)
    found = dict.fromkeys(("embed", "attention", "mlp", "norms", "head"), 0)
    for name, num_bytes in sizes.items():
        found[_room(name)] += num_bytes
    return found | {"other": checkpoint.file_bytes - sum(found.values())}


def _room(name: str) -> str:
    """The part that a canonical weight name belongs to."""
    last = name.removesuffix(".bias").rpartition(".")[2]
    if last in ("embed", "head"):
        return last
    return "norms" if last.endswith("norm") else "mlp" if last in _MLP else "attention"


def _folder(checkpoint: Checkpoint) -> dict[str, int]:
    """Of the float weights, as `file_bytes` counts: codes that lie beside them say the same again."""
    sizes: dict[str, int] = {}
    for part in checkpoint.parts():
        info = checkpoint.tensors[part.source]
        rows = checkpoint.architecture.matrix_shapes().get(part.name, info.shape)[0]  # of a tensor that several share
        row_bytes = math.prod(info.shape[1:]) * _WIDTH[info.dtype]
        sizes[part.name] = rows * row_bytes
    return sizes


def _gguf(checkpoint: Checkpoint) -> dict[str, int]:
    from gguf import GGML_QUANT_SIZES

    from penjing.format.gguf_header import read_header

    header = read_header(checkpoint.path, {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()})
    return {_canonical(tensor.name): tensor.nbytes for tensor in header.tensors.values()}


def _canonical(gguf_name: str) -> str:
    """GGUF's name as one that `_room` knows; which layer does not matter, that names stay apart does."""
    name = gguf_name.removesuffix(".weight")
    renamed = {"token_embd": "embed", "output": "head"}.get(name, name)
    return renamed.replace("ffn_norm", "mlp_norm").replace("ffn_", f"{name}.")
