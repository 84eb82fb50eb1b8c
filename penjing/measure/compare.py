"""Several models on the same work in one run: the same windows of text, speeds taken in turn."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penjing.checkpoint import Checkpoint
from penjing.data.text import Corpus, Windows, load_tokenizer, windows
from penjing.errors import PenjingError
from penjing.format.architecture import Architecture
from penjing.measure.memory import measure_memory
from penjing.measure.quality import Progress, Quality, Scorer, qualities
from penjing.measure.speed import speeds

if TYPE_CHECKING:
    from penjing.measure.torch_decoder import DecoderScorer
    from penjing.measure.torch_model import TorchScorer
    from penjing.runtime.session import KvKind

WHAT = ("quality", "speed", "memory")
WINDOW = 512  # tokens
#: relative difference in perplexity between the engine and the same weights in float32
MAX_DIFFERENCE = 0.005


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A packed model as the engine runs it, and its weights made float32 and run by torch."""

    shipped: Quality
    simulated: Quality

    @property
    def relative_difference(self) -> float:
        """Of the perplexities, as a fraction of the simulated one."""
        return abs(self.shipped.perplexity / self.simulated.perplexity - 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "shipped": self.shipped.to_json(),
            "simulated": self.simulated.to_json(),
            "relative_difference": self.relative_difference,
        }


def shipped_vs_simulated(
    checkpoint: Checkpoint,
    held_out: Windows,
    *,
    parent: Scorer | None = None,
    max_difference: float = MAX_DIFFERENCE,
    progress: Progress | None = None,
) -> Shipped:
    """Quality of the file that ships and of its simulation. Raises PenjingError where they are not the same model."""
    with scorer_of(checkpoint, held_out.tokens_WT.shape[1]) as engine:
        pair = {"shipped": engine, "simulated": _torch_scorer(checkpoint)}
        found = Shipped(**qualities(pair, held_out, parent=parent, progress=progress))
    if not found.relative_difference < max_difference:  # also true for NaN
        raise PenjingError(
            f"shipped perplexity {found.shipped.perplexity:.4f} is {found.relative_difference:.2%} from the simulated "
            f"{found.simulated.perplexity:.4f}; less than {max_difference:.2%} is accepted",
            where=str(checkpoint.path),
            attempt="PENJING_ISA=scalar, and report this",
        )
    return found


def compare(
    checkpoints: Sequence[Checkpoint],
    *,
    what: Collection[str] = WHAT,
    corpus: Corpus | None = None,
    parent: Checkpoint | None = None,
    window: int = WINDOW,
    max_windows: int | None = None,
    threads: int | None = None,
    repeats: int = 5,
    kv: KvKind = "f16",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One row a model, in order, under the keys of `measure --json`.

    Quality needs a corpus. Speed and memory are the engine's: rows of models that are not packed are without. kv: how
    the engine keeps keys and values, see `Session`.
    Raises PenjingError for what cannot be measured of any of them.
    """
    _check_request(checkpoints, what, corpus)
    rows: list[dict[str, Any]] = [describe(checkpoint) for checkpoint in checkpoints]
    if "quality" in what and corpus is not None:
        scored = _quality(checkpoints, corpus, parent, window, max_windows, kv, progress)
        for row, found in zip(rows, scored, strict=True):
            row["quality"] = found.to_json()
    packed = [index for index, checkpoint in enumerate(checkpoints) if is_packed(checkpoint)]
    paths = [checkpoints[index].path for index in packed]
    if "speed" in what:
        measured = speeds(paths, threads=threads, repeats=repeats, kv=kv, progress=progress)
        for index, speed in zip(packed, measured, strict=True):
            rows[index]["speed"] = speed.to_json()
    if "memory" in what:
        for index, path in zip(packed, paths, strict=True):
            rows[index]["memory"] = measure_memory(path, threads=threads, kv=kv).to_json()
    return rows


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What needs no measuring: name, bytes, and bits per weight that count everything in the file."""
    bits = 8 * checkpoint.file_bytes / num_weights(checkpoint.architecture)
    return {"model": checkpoint.name, "bytes": checkpoint.file_bytes, "bits_per_weight": bits}


def num_weights(architecture: Architecture) -> int:
    """Weights of a decoder: matrices and norms; a tied head is not counted again."""
    return sum(map(math.prod, architecture.matrix_shapes().values())) + sum(architecture.norm_sizes().values())


def is_packed(checkpoint: Checkpoint) -> bool:
    """Whether the engine runs this very file."""
    return checkpoint.path.suffix == ".penjing"


@contextmanager
def scorer_of(checkpoint: Checkpoint, window: int, kv: KvKind = "f16") -> Iterator[Scorer]:
    """The engine for a packed model, transformers for any other. `window` tokens at most are scored at once."""
    if not is_packed(checkpoint):
        yield _torch_scorer(checkpoint)
        return
    from penjing.measure.engine_model import EngineScorer
    from penjing.runtime.session import Session

    session = Session(checkpoint.path, context=window, kv=kv)
    try:
        yield EngineScorer(session)
    finally:
        session.close()


def held_out_windows(checkpoint: Checkpoint, corpus: Corpus, window: int, max_windows: int | None) -> Windows:
    """The corpus in tokens of this model's own tokenizer."""
    if checkpoint.tokenizer_json is None:
        raise PenjingError(
            "no tokenizer, so no text can be measured",
            where=checkpoint.name,
            attempt="put the model's tokenizer.json beside its config.json",
        )
    tokenizer = load_tokenizer(checkpoint.tokenizer_json, where=checkpoint.name)
    bos = checkpoint.architecture.bos_token_id
    return windows(tokenizer, corpus, length=window, max_windows=max_windows, bos_token_id=bos)


def _quality(
    checkpoints: Sequence[Checkpoint],
    corpus: Corpus,
    parent: Checkpoint | None,
    window: int,
    max_windows: int | None,
    kv: KvKind,
    progress: Progress | None,
) -> list[Quality]:
    """Models with the same windows are scored together, so that the parent predicts each window once."""
    cut = [held_out_windows(checkpoint, corpus, window, max_windows) for checkpoint in checkpoints]
    parent_digest = held_out_windows(parent, corpus, window, max_windows).digest if parent is not None else None
    found: dict[int, Quality] = {}
    for digest in dict.fromkeys(entry.digest for entry in cut):
        if parent_digest not in (None, digest):
            raise PenjingError(
                "its tokenizer is not the parent's, so their predictions cannot be compared",
                where=", ".join(checkpoints[i].name for i, entry in enumerate(cut) if entry.digest == digest),
                attempt="measure without a parent: bits per byte compares models with different tokenizers",
            )
        with ExitStack() as stack:
            members = [index for index, entry in enumerate(cut) if entry.digest == digest]
            scorers = {str(i): stack.enter_context(scorer_of(checkpoints[i], window, kv)) for i in members}
            teacher = stack.enter_context(scorer_of(parent, window, kv)) if parent is not None else None
            scored = qualities(scorers, cut[members[0]], parent=teacher, progress=progress)
        found |= {int(name): quality for name, quality in scored.items()}
    return [found[index] for index in range(len(checkpoints))]


def _check_request(checkpoints: Sequence[Checkpoint], what: Collection[str], corpus: Corpus | None) -> None:
    unknown = set(what) - set(WHAT)
    if unknown or not what:
        raise PenjingError(f"cannot measure {', '.join(sorted(unknown)) or 'nothing'}", attempt=", ".join(WHAT))
    if "quality" in what and corpus is None:
        raise PenjingError("quality is measured on text, and none was given", attempt="--text FILE")
    if {"speed", "memory"} & set(what) and not any(map(is_packed, checkpoints)):
        raise PenjingError(
            "speed and memory are those of a packed model, and none was given",
            where=", ".join(checkpoint.name for checkpoint in checkpoints),
            attempt="penjing pack MODEL OUT.penjing, or --what quality",
        )


def _torch_scorer(checkpoint: Checkpoint) -> TorchScorer | DecoderScorer:
    """float32: by transformers, but a packed model has no config of theirs."""
    try:
        if is_packed(checkpoint):
            from penjing.measure import torch_decoder

            return torch_decoder.scorer(checkpoint)
        from penjing.measure import torch_model

        return torch_model.scorer(checkpoint)
    except ModuleNotFoundError as error:
        raise PenjingError(
            f"{error.name} is not installed",
            where=f"quality of {checkpoint.name}",
            attempt="pip install 'penjing[fit]'",
        ) from error
