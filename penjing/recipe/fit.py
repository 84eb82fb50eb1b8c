"""fit, the main job: calibrate, choose how each matrix is stored, quantize, pack, and prove it on held-out text.

What it does is kept in `OUT.run/` beside OUT: the importance of the weights, the quantized checkpoint, evidence and
report. Killed at any moment and run again, it goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penjing import evidence as records
from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.data.text import Corpus, Windows, check_disjoint, split
from penjing.errors import PenjingError
from penjing.evidence import Evidence, recording
from penjing.files import os_error, write_file
from penjing.format.container import replace_evidence
from penjing.measure import torch_model
from penjing.measure.compare import WINDOW, describe, held_out_windows, shipped_vs_simulated
from penjing.measure.memory import measure_memory
from penjing.measure.probe import read_device
from penjing.measure.quality import quality
from penjing.measure.speed import speeds
from penjing.recipe.forecast import foresee
from penjing.recipe.options import METHOD, TUNED_BY, options
from penjing.recipe.report import report
from penjing.recipe.search import Option, allocate, size
from penjing.runtime.binding import isa
from penjing.stages import EVIDENCE, Progress
from penjing.stages.calibrate import calibrate
from penjing.stages.calibration_text import calibration_windows
from penjing.stages.foresight import UNLIMITED, Budget
from penjing.stages.pack import check_out, pack
from penjing.stages.quantize import quantize
from penjing.stages.tune import tune
from penjing.tensors.statistics import Importance

#: SmolLM2-135M to 76 MB: perplexity +6.2% with 12 windows, +5.1% with 32; to 48 MB +178% and +162%
CALIBRATION_WINDOWS = 32
HELD_OUT_WINDOWS = 16
#: a first guess, names, layout, settings and padding, which the packed file corrects; SmolLM2's are 510 to 560, and to
#: guess too little costs quantizing twice
_HEADER_BYTES_A_MATRIX = 600
_RECORD_BYTES = 12 << 10  # that tuning and the proof will add to the header at most
_PROOF_BYTES = 8 << 10  # of these, what the proof will
_ATTEMPTS = 4
_SLACK = 0.005  # bytes left unused, as a fraction, that are not worth another attempt
#: of the device's read bandwidth that decoding is expected to reach, where only --min-speed bounds the size
_EXPECTED_LIMIT_FRACTION = 0.6


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the result must keep to; None: no limit. `max_loss`: growth of held-out perplexity as a fraction."""

    max_bytes: int | None = None
    min_speed: float | None = None
    max_loss: float | None = None
    read_bytes_per_s: float | None = None  # of the device, where it is known


def fit(
    parent: Checkpoint,
    out: Path,
    *,
    data: Corpus,
    max_bytes: int | None = None,
    device: Path | None = None,
    min_speed: float | None = None,
    max_loss: float | None = None,
    minutes: float | None = None,
    seed: int = 0,
    force: bool = False,
    budget: Budget = UNLIMITED,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Evidence:
    """Write `out`, the best model within the limits for this text, and prove it.

    Bytes bound the choice; without them the loss does, else the speed. What was not used to choose is checked by
    measuring: a result that breaks a limit is an error, and stays in `OUT.run/` with its evidence. `minutes` are spent
    on tuning: what was quantized learns from its float parent, in the same bytes. With a `budget`, or
    `tell`, which hears it, time and memory are predicted first; what cannot be met is not begun.
    Raises PenjingError.
    """
    out = Path(out)
    check_out(out, force=force)
    bandwidth = 1e9 * read_device(device).read_gb_per_s if device is not None else None
    limits = Limits(max_bytes=max_bytes, min_speed=min_speed, max_loss=max_loss, read_bytes_per_s=bandwidth)
    run = out.with_suffix(".run")
    cache = run / "importance.safetensors"
    _make_folder(run)
    learnt, calibration, held_out = _texts(parent, data, seed)
    settings = {"max_bytes": max_bytes, "min_speed": min_speed, "max_loss": max_loss, "seed": seed, "method": METHOD}
    settings |= {} if minutes is None else {"minutes": minutes}
    with recording(
        "fit", settings, path=run / EVIDENCE, parent=parent.digest, corpus=held_out.digest, isa=isa()
    ) as work:
        if budget or tell is not None:
            foreseen = foresee(
                parent, calibration, held_out, run,
                calibrated=cache.is_file(), minutes=minutes, budget=budget, tell=tell,
            )  # fmt: skip
            work.predicted = dataclasses.asdict(foreseen)
        importances = calibrate(parent, calibration, cache=cache, seed=seed, progress=progress)
        draft = run / out.name
        possible = options(parent, importances, progress=progress)
        chosen = make_within(parent, run, draft, possible, importances, calibration, limits, seed, progress)
        predicted_kl = sum(option.error for option in chosen.values())
        del importances, possible  # Hessians are up to a gigabyte
        made = run / "quantized"
        if minutes is not None:
            made = make_tuned(parent, run, draft, learnt, minutes, seed, progress)
        work.before, work.after = _prove(parent, draft, held_out, progress)
        work.after["predicted_kl"] = predicted_kl
        work.child = open_checkpoint(draft).digest
        _check_limits(work.before, work.after, limits, draft)
    fitted = work.finished()
    replace_evidence(draft, [*records.read(made / EVIDENCE), fitted.to_json()])
    os.replace(draft, out)
    report(out, run / "report.html")
    cache.unlink(missing_ok=True)  # larger than the model, and only a re-run would have needed it
    return fitted


def _make_folder(run: Path) -> None:
    try:
        run.mkdir(exist_ok=True)
    except OSError as error:
        raise os_error(error, run) from error


def _texts(parent: Checkpoint, data: Corpus, seed: int) -> tuple[Corpus, Windows, Windows]:
    """The text to learn from, calibration windows of it, and held-out windows of text that it does not share."""
    learnt, apart = split(data, seed=seed)
    calibration = calibration_windows(parent, learnt, length=WINDOW, count=CALIBRATION_WINDOWS)
    held_out = held_out_windows(parent, apart, WINDOW, HELD_OUT_WINDOWS)
    check_disjoint(calibration, held_out)
    return learnt, calibration, held_out


def make_within(
    parent: Checkpoint,
    run: Path,
    draft: Path,
    possible: Mapping[str, list[Option]],
    importances: Mapping[str, Importance],
    calibration: Windows,
    limits: Limits,
    seed: int,
    progress: Progress | None,
) -> dict[str, Option]:
    """Choose among what is possible, quantize and pack, until the packed file is within the bytes."""
    quantized, guess = run / "quantized", _Guess(run, parent, calibration, limits)
    beside = guess.last() or _beside(parent, len(possible))
    for _ in range(_ATTEMPTS):
        chosen = _choose(possible, limits, beside)
        overrides = [(name, dict(option.settings)) for name, option in chosen.items()]
        if not _is_made(quantized, parent, overrides, calibration.digest, seed):
            quantize(
                parent, quantized, method=METHOD, overrides=overrides, importances=importances,
                calibration=calibration, force=True, seed=seed, progress=progress,
            )  # fmt: skip
        pack(open_checkpoint(quantized), draft, force=True, progress=progress)
        file_bytes = draft.stat().st_size
        beside_now = file_bytes - size(chosen.values())
        fits = limits.max_bytes is None or file_bytes + _RECORD_BYTES <= limits.max_bytes
        if fits and beside - beside_now < _SLACK * file_bytes:
            break
        beside = beside_now
        guess.keep(beside)
    return chosen


def _beside(parent: Checkpoint, num_matrices: int) -> int:
    """Bytes of a packed file that are not matrices: about."""
    vectors = 4 * sum(parent.architecture.norm_sizes().values())
    tokenizer = len(zlib.compress((parent.tokenizer_json or "").encode()))
    return _HEADER_BYTES_A_MATRIX * num_matrices + vectors + tokenizer


class _Guess:
    """What the packed file taught about the bytes beside matrices, kept so that a run that was killed need not learn it
    again, and chooses as it would have done."""

    def __init__(self, run: Path, parent: Checkpoint, calibration: Windows, limits: Limits) -> None:
        self._path = run / "beside.json"
        self._of = [parent.digest, calibration.digest, dataclasses.asdict(limits)]

    def last(self) -> int | None:
        try:
            kept = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        return int(kept["bytes"]) if kept["of"] == self._of else None

    def keep(self, beside: int) -> None:
        write_file(self._path, json.dumps({"of": self._of, "bytes": beside}).encode())


def make_tuned(
    parent: Checkpoint,
    run: Path,
    draft: Path,
    learnt: Corpus,
    minutes: float,
    seed: int,
    progress: Progress | None,
    spec: Mapping[str, Any] | None = None,
) -> Path:
    """Tune what `make_within` has quantized, and pack it over the draft; the folder of the tuned child. `spec`: as of
    `tune`."""
    tuned, quantized, spec = run / "tuned", open_checkpoint(run / "quantized"), dict(spec or {})
    known = [record for record in records.read(tuned / EVIDENCE) if record.get("stage") == "tune"]
    wanted = {"minutes": minutes, "spec": spec}
    if not (known and known[-1].get("parent") == quantized.digest and wanted.items() <= known[-1]["settings"].items()):
        tune(
            quantized, tuned, parent=parent, data=learnt, method=TUNED_BY, spec=spec, minutes=minutes,
            force=True, seed=seed, progress=progress,
        )  # fmt: skip
    pack(open_checkpoint(tuned), draft, force=True, progress=progress)
    return tuned


def _choose(possible: Mapping[str, list[Option]], limits: Limits, beside: int) -> dict[str, Option]:
    """The best choice whose file should be within the bytes; `beside`: bytes of the file that are not matrices."""
    if limits.max_bytes is not None:
        return allocate(possible, limits.max_bytes - _RECORD_BYTES - beside)
    if limits.max_loss is not None:
        return _smallest(possible, math.log1p(limits.max_loss))
    if limits.min_speed is None or limits.read_bytes_per_s is None:
        raise PenjingError(
            "nothing says how small the model must be",
            where="fit",
            attempt="--max-bytes, --max-loss, or --min-speed with --device",
        )
    return allocate(possible, int(_EXPECTED_LIMIT_FRACTION * limits.read_bytes_per_s / limits.min_speed))


def _smallest(possible: Mapping[str, list[Option]], max_error: float) -> dict[str, Option]:
    """The smallest choice whose error is at most `max_error`: a growth of mean loss, in nats a token."""
    low = size(min(choices, key=lambda option: option.size_bytes) for choices in possible.values())
    high = size(max(choices, key=lambda option: option.size_bytes) for choices in possible.values())
    while high - low > _SLACK * low:
        middle = (low + high) // 2
        if sum(option.error for option in allocate(possible, middle).values()) <= max_error:
            high = middle
        else:
            low = middle
    return allocate(possible, high)


def _is_made(
    folder: Path, parent: Checkpoint, overrides: list[tuple[str, dict[str, Any]]], corpus: str, seed: int
) -> bool:
    """Whether an earlier run has finished this very quantization."""
    known = [record for record in records.read(folder / EVIDENCE) if record.get("stage") == "quantize"]
    last = known[-1] if known else {}
    wanted = {"method": METHOD, "spec": {}, "seed": seed, "overrides": [list(pair) for pair in overrides]}
    made = (last.get("settings"), last.get("parent"), last.get("corpus"), last.get("failed"))
    return made == (wanted, parent.digest, corpus, None)


def _prove(
    parent: Checkpoint, draft: Path, held_out: Windows, progress: Progress | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `measure` says of the parent and of the packed file, on the same text and in the same run.

    The parent's quality is that of its float32 weights; its speed and memory are those of its weights as float16 in
    the same engine.
    """
    packed = open_checkpoint(draft)
    teacher = torch_model.scorer(parent)
    before, after = describe(parent), describe(packed)
    before["quality"] = quality(teacher, held_out, progress=progress).to_json()
    both = shipped_vs_simulated(packed, held_out, parent=teacher, progress=progress)
    after["quality"] = both.shipped.to_json()
    after["simulated"] = both.simulated.to_json()
    del teacher
    floats = draft.with_name(f".parent-f16{draft.suffix}")
    try:
        pack(parent, floats, float_kind="f16", force=True, progress=progress)
        measured = zip((before, after), (floats, draft), speeds([floats, draft], progress=progress), strict=True)
        for row, path, speed in measured:
            row["speed"] = speed.to_json()
            row["memory"] = measure_memory(path).to_json()
    finally:
        floats.unlink(missing_ok=True)
    return before, after


def _check_limits(before: Mapping[str, Any], after: Mapping[str, Any], limits: Limits, draft: Path) -> None:
    """Raise PenjingError where what was measured breaks a limit."""
    if limits.max_bytes is not None and after["bytes"] + _PROOF_BYTES > limits.max_bytes:
        raise PenjingError(
            f"the file has {after['bytes']:,} bytes, {limits.max_bytes:,} are allowed",
            where=str(draft),
            attempt="more bytes: even the fewest bits do not fit",
        )
    loss = after["quality"]["perplexity"] / before["quality"]["perplexity"] - 1
    if limits.max_loss is not None and not loss <= limits.max_loss:
        raise PenjingError(
            f"perplexity grew by {loss:.1%}, {limits.max_loss:.1%} is allowed", where=str(draft), attempt="more bytes"
        )
    speed = after["speed"]["decode_tokens_per_s"]
    if limits.min_speed is not None and not speed >= limits.min_speed:
        raise PenjingError(
            f"it decodes {speed:.1f} tokens/s, {limits.min_speed:.1f} are wanted",
            where=str(draft),
            attempt=f"--max-bytes {int(after['bytes'] * speed / limits.min_speed)}, or a faster device",
        )
