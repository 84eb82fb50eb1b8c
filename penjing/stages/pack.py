"""Pack: a checkpoint becomes one `.penjing` file. Codes are copied as they are, the rest becomes one float kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from penjing import evidence as records
from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.errors import PenjingError
from penjing.evidence import Evidence, recording
from penjing.format.container import open_container, write_container
from penjing.format.families import Part
from penjing.format.pack import FLOAT_DTYPES, LANES, Kind, Layout, pack_float
from penjing.format.safetensors_file import VIEWS
from penjing.stages import EVIDENCE, Progress, base, version

_CHUNK = 1 << 22  # weights packed at a time
_SUFFIX = ".penjing"


def pack(
    checkpoint: Checkpoint,
    out: Path,
    *,
    float_kind: str = "f16",
    force: bool = False,
    progress: Progress | None = None,
) -> Evidence:
    """Write `out`, which must end in .penjing. Matrices that are not quantized become `float_kind`: f16, bf16 or f32.

    The file carries tokenizer, chat template, where it came from and the evidence so far; not the record returned,
    which has the file's own digest. Raises PenjingError.
    """
    out = Path(out)
    check_out(out, force=force)
    if float_kind not in FLOAT_DTYPES:
        raise PenjingError(f"no float kind {float_kind!r}", where="float_kind", attempt=", ".join(FLOAT_DTYPES))
    layouts = _layouts(checkpoint, cast(Kind, float_kind))
    settings = {"float_kind": float_kind}
    with recording("pack", settings, parent=checkpoint.digest) as work:
        write_container(
            out,
            architecture=checkpoint.architecture,
            layouts=layouts,
            tensors=_tensors(checkpoint, layouts, progress),
            biases={part.name for part in checkpoint.parts() if part.name.endswith(".bias")},
            tokenizer_json=checkpoint.tokenizer_json,
            chat_template=checkpoint.chat_template,
            generation=checkpoint.generation,
            provenance=_provenance(checkpoint, settings),
            evidence=_evidence(checkpoint),
        )
        with open_container(out) as container:
            work.after = {"bytes": container.file_bytes, "bits_per_weight": container.bits_per_weight}
        work.before = {"bytes": checkpoint.file_bytes}
        work.child = open_checkpoint(out).digest
    return work.finished()


def check_out(out: Path, *, force: bool) -> None:
    """Raise PenjingError unless a packed model may be written there."""
    if out.suffix != _SUFFIX:
        raise PenjingError(f"a packed model's name ends in {_SUFFIX}", where=str(out), attempt=f"{out}{_SUFFIX}")
    if out.is_dir():
        raise PenjingError("it is a folder", where=str(out), attempt="another name")
    if out.exists() and not force:
        raise PenjingError("it is already there", where=str(out), attempt="--force, or another name")


def _layouts(checkpoint: Checkpoint, float_kind: Kind) -> dict[str, Layout]:
    found = {}
    for name, (rows, cols) in checkpoint.architecture.matrix_shapes().items():
        layout = checkpoint.quantized.get(name) or Layout(kind=float_kind, rows=rows, cols=cols)
        layout.check(where=name)
        if (layout.rows, layout.cols) != (rows, cols):
            problem = f"codes of {layout.rows} x {layout.cols} for a matrix of {rows} x {cols}"
            raise PenjingError(problem, where=name, attempt="quantize the model again")
        found[name] = layout
    return found


def _tensors(
    checkpoint: Checkpoint, layouts: Mapping[str, Layout], progress: Progress | None
) -> Iterator[tuple[str, NDArray[Any]]]:
    parts = checkpoint.parts()
    for done, part in enumerate(parts):
        if progress is not None:
            progress(part.name, done, len(parts))
        if part.name not in layouts:
            yield part.name, _vector(checkpoint, part)
        elif part.name in checkpoint.quantized:
            yield from _codes(checkpoint, part.name, layouts[part.name])
        else:
            yield from _floats(checkpoint, part, layouts[part.name])
    if progress is not None:
        progress("packed", len(parts), len(parts))


def _vector(checkpoint: Checkpoint, part: Part) -> NDArray[np.float32]:
    vector = checkpoint.read_part(part)
    if not np.isfinite(vector).all():
        raise PenjingError("a value is NaN or infinite", where=part.name, attempt="repair the model, or train it again")
    return vector


def _codes(checkpoint: Checkpoint, name: str, layout: Layout) -> Iterator[tuple[str, NDArray[Any]]]:
    packed = checkpoint.packed(name)
    specs = layout.tensor_specs()
    stored = {suffix: (str(array.dtype), array.shape) for suffix, array in packed.items()}
    if stored != {suffix: (str(VIEWS[spec.dtype]), spec.shape) for suffix, spec in specs.items()}:
        raise PenjingError("the codes are not what their layout says", where=name, attempt="quantize the model again")
    if "scales" in packed and not np.isfinite(packed["scales"]).all():
        raise PenjingError("a scale is NaN or infinite", where=name, attempt="quantize the model again")
    for suffix, array in packed.items():
        yield f"{name}.{suffix}", array


def _floats(checkpoint: Checkpoint, part: Part, layout: Layout) -> Iterator[tuple[str, NDArray[Any]]]:
    step = max(1, _CHUNK // (LANES * layout.cols)) * LANES
    for start in range(0, layout.rows, step):
        weight_OI = checkpoint.read_part(part, slice(start, min(start + step, layout.rows)))
        chunk = Layout(kind=layout.kind, rows=len(weight_OI), cols=layout.cols)
        yield f"{part.name}.weight", pack_float(chunk, weight_OI, where=part.name)["weight"]


def _provenance(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> dict[str, Any]:
    # Hugging Face's config, for exports; that of a packed file would be its architecture
    config = {} if checkpoint.path.suffix == _SUFFIX else {"config": checkpoint.config}
    return config | {
        "name": checkpoint.name,
        "parent": checkpoint.digest,
        "base": base(checkpoint),
        "penjing": version(),
        "settings": dict(settings),
    }


def _evidence(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    return records.read(checkpoint.path / EVIDENCE) if checkpoint.path.is_dir() else []
