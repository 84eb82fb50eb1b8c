"""What quantizing costs, beside what was predicted: seconds and peak memory of fresh processes. Markdown and JSON.

    python scripts/bench_cost.py smollm2 --text FILE [-o docs/results/cost.md]
    python scripts/bench_cost.py big [--blocks 4] [--folder build/big] [-o docs/results/big.md]

`smollm2`: techniques on SmolLM2-135M, GPTQ with X^T X of 128 x 512 tokens block by block. Learned rounding takes long:
it is run on some blocks, with some of its steps, or in full with --autoround 30. Tuning by the teacher's KL takes the
minutes it is given (--tuning-minutes), of a child of 3 bits that a process before has made. `big`: GPTQ on a made
checkpoint of 3.2 billion random weights, all of its shapes, some of its blocks; tokens are random too, as it has no
tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MODEL = "smollm2-135m"
BLOCKS = 30  # that it has
LENGTH = 512
#: the 3B shape: that of Llama 3.2 3B, but for its heads of 128
BIG = {"vocab": 128256, "hidden": 3072, "intermediate": 8192, "layers": 28}
BIG_WINDOWS = (8, 256)
EMBED = {"method": "rtn", "bits": 4, "group_size": 64}
#: tokens that go through the model at a time: fewer than usual, for the 3 GB that are allowed
TUNING = {"micro_tokens": 256}
TIMEOUT_S = 3000


@dataclass
class Job:
    """One process."""

    name: str
    method: str
    model: str
    windows: tuple[int, int] | None = None
    text: str | None = None  # without it tokens are random
    spec: dict[str, Any] = field(default_factory=dict)
    blocks: int | None = None  # quantized; None: all of them
    tuned_minutes: float | None = None  # instead of quantizing: scales learn so long, from a child that rtn made
    most_minutes: float | None = None  # the bars
    most_bytes: float | None = None


@dataclass
class Row:
    job: Job
    predicted: dict[str, float]
    seconds: float
    peak_rss_bytes: int
    foreseeing_s: float
    at: list[float]  # seconds after which each block had begun
    kl: list[float] = field(default_factory=list)  # of tuning: to the parent, on text kept apart, before and after


def work(job: Job, embed: dict[str, Any] = EMBED) -> Row:
    """In a process of its own."""
    from penjing.checkpoint import open_checkpoint
    from penjing.errors import PenjingError
    from penjing.evidence import peak_rss_bytes
    from penjing.stages.foresight import Budget
    from penjing.stages.quantize import quantize

    parent = open_checkpoint(job.model)
    windows = _windows(parent, job)
    layers = parent.architecture.num_layers
    overrides: list[tuple[str, dict[str, Any]]] = [("[eh]*", embed), ("layers.*", job.spec)]
    overrides += [(f"layers.{n}.*", {"bits": 16}) for n in range(job.blocks or layers, layers)]
    assert parent.digest  # reading all of it once is not part of the work
    marks: list[tuple[int, float]] = []
    said: list[float] = []
    begun = time.perf_counter()

    def progress(tensor: str, done: int, total: int) -> None:
        found = [part for part in tensor.split(".") if part.isdigit()]
        if found and (not marks or marks[-1][0] != int(found[0])):
            marks.append((int(found[0]), time.perf_counter()))

    def tell(text: str) -> None:
        said.append(time.perf_counter() - begun)
        print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(dir=Path(job.model).parent if os.path.isdir(job.model) else None) as folder:
        try:
            evidence = quantize(
                parent, Path(folder) / "child", method=job.method, overrides=overrides,
                calibration=windows, budget=Budget(), tell=tell, progress=progress,
            )  # fmt: skip
        except PenjingError as error:
            raise SystemExit(str(error)) from error
    start = marks[0][1]
    at = [when - start for _, when in marks]
    return Row(job, evidence.predicted, evidence.seconds, peak_rss_bytes(), said[0], at)


def tune_scales(job: Job) -> Row:
    """As `work`, for a job with `tuned_minutes`. The child is made by a process before, so that memory is tuning's."""
    from quality.texts import read_texts

    from penjing.checkpoint import open_checkpoint
    from penjing.evidence import peak_rss_bytes
    from penjing.stages.tune import tune

    assert job.text is not None
    with tempfile.TemporaryDirectory() as folder:
        child = Path(folder) / "child"
        settings = [f"--set={key}={value}" for key, value in job.spec.items()]
        settings += [f"--set=[eh]*:{key}={value}" for key, value in EMBED.items()]
        command = [sys.executable, "-m", "penjing", "quantize", job.model, child, "--method=rtn", *settings]
        subprocess.run(command, check=True, capture_output=True)
        evidence = tune(
            open_checkpoint(child),
            Path(folder) / "tuned",
            parent=open_checkpoint(job.model),
            data=read_texts(Path(job.text)),
            method=job.method,
            spec=TUNING,
            minutes=job.tuned_minutes,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
    predicted = {"seconds": 60 * (job.tuned_minutes or 0)} | evidence.predicted
    kl = [evidence.before["kl_to_parent"], evidence.after["kl_to_parent"]]
    return Row(job, predicted, evidence.seconds, peak_rss_bytes(), 0.0, [], kl)


def _windows(parent: Any, job: Job) -> Any:
    from penjing.data.text import Windows, read_corpus
    from penjing.stages.calibration_text import calibration_windows

    if job.windows is None:
        return None
    if job.text is None:
        tokens_WT = np.random.default_rng(0).integers(0, parent.architecture.vocab_size, job.windows, dtype=np.int32)
        return Windows(tokens_WT, tokens_WT.size)
    count, length = job.windows
    found = calibration_windows(parent, read_corpus([Path(job.text)]), length=length, count=count)
    if len(found.tokens_WT) < count:
        raise SystemExit(f"{job.text} has only {len(found.tokens_WT)} windows of {length}")
    return found


def run(job: Job) -> Row:
    """In a fresh process, whose threads do not spin while they wait: other programs may need the cores."""
    command = [sys.executable, __file__, "--work", json.dumps(asdict(job))]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return Row(job, **{key: value for key, value in found.items() if key != "job"})


def smollm2_jobs(text: str, autoround: int, tuning_text: str | None, minutes: float) -> list[Job]:
    """The issue's rows, and the cheap ones that predictions are judged by as well; learned rounding is the last."""
    in_full = autoround >= BLOCKS
    steps = 200 if in_full else 60
    tuning = Job(
        f"scale tuning by KL, {minutes:g} minutes", "kl_tuning", MODEL, text=tuning_text, spec={"bits": 3},
        tuned_minutes=minutes, most_minutes=15, most_bytes=3e9,
    )  # fmt: skip
    return [
        Job("round to nearest", "rtn", MODEL),
        Job("scale search, 16 × 512", "scale_search", MODEL, (16, LENGTH), text),
        Job("GPTQ, X^T X, 128 × 512", "gptq", MODEL, (128, LENGTH), text, most_minutes=6, most_bytes=2e9),
        *([tuning] if tuning_text else []),
        Job(
            f"learned rounding, {steps} steps, {autoround} blocks of {BLOCKS}, 32 × 512", "autoround",
            MODEL, (32, LENGTH), text, spec={"steps": steps}, blocks=autoround,
            most_minutes=40 if in_full else None, most_bytes=3e9,
        ),
    ]  # fmt: skip


def line_of(at: list[float]) -> tuple[float, float]:
    """Seconds a block by least squares, and the largest distance from that line in blocks."""
    if len(at) < 3:
        return float("nan"), float("nan")
    block_N = np.arange(len(at))
    slope, offset = np.polyfit(block_N, at, 1)
    return float(slope), float(np.abs(offset + slope * block_N - at).max() / slope)


def table(rows: list[Row]) -> list[str]:
    lines = [
        "| | predicted | took | predicted / took | predicted | peak memory | predicted / peak | at most |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        foreseen, size = row.predicted["seconds"], row.predicted["peak_rss_bytes"]
        bar, met = [], True
        if row.job.most_minutes is not None:
            bar.append(f"{row.job.most_minutes:g} min")
            met &= row.seconds <= 60 * row.job.most_minutes
        if row.job.most_bytes is not None:
            bar.append(f"{row.job.most_bytes / 1e9:g} GB")
            met &= row.peak_rss_bytes <= row.job.most_bytes
        verdict = f"{', '.join(bar)}: {'met' if met else '**not met**'}" if bar else ""
        lines.append(
            f"| {row.job.name} | {foreseen:,.1f} s | {row.seconds:,.1f} s | {foreseen / row.seconds:.2f} "
            f"| {size / 1e6:,.0f} MB | {row.peak_rss_bytes / 1e6:,.0f} MB | {size / row.peak_rss_bytes:.2f} "
            f"| {verdict} |"
        )
    return lines


def machine() -> str:
    from penjing.evidence import device, versions

    found = device()
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{found['cpu']}, {found['cores']} cores, {found['memory_bytes'] / 1e9:.0f} GB. {packages}."


def write(out: Path, title: str, command: str, rows: list[Row], notes: str) -> None:
    import torch  # noqa: F401 - its version is told

    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", "", machine(), "", f"`{command}`", "", *table(rows), "", notes]
    out.write_text("\n".join(lines) + "\n")
    out.with_suffix(".json").write_text(
        json.dumps({"command": command, "machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    )


def bench_smollm2(options: argparse.Namespace) -> None:
    out = options.out or Path("docs/results/cost.md")
    tuning_text = None if options.tuning_text is None else str(options.tuning_text)
    jobs = smollm2_jobs(str(options.text), options.autoround, tuning_text, options.tuning_minutes)
    rows: list[Row] = []
    for job in jobs:  # what takes long is kept as it comes
        rows.append(run(job))
        write(out, "What quantizing SmolLM2-135M costs", "make bench-cost", rows, notes_of(rows))
    print(out.read_text())


def notes_of(rows: list[Row]) -> str:
    notes = [
        f"{row.job.name}: KL to the parent on text kept apart {row.kl[0]:.3f} to {row.kl[1]:.3f} nats."
        for row in rows
        if row.kl
    ]
    learned = rows[-1]
    blocks = learned.job.blocks or BLOCKS
    if learned.job.method == "autoround" and blocks < BLOCKS:
        scaled = learned.seconds * BLOCKS / blocks * 200 / learned.job.spec["steps"]
        within = "within" if scaled <= 2400 else "beyond"
        notes.append(
            f"Learned rounding in full, {BLOCKS} blocks of 200 steps, was not run: at this rate it takes at most "
            f"{scaled / 60:.0f} minutes ({within} the 40 that are allowed), and memory as here."
        )
    foreseeing_s = max(row.foreseeing_s for row in rows)
    notes.append(f"""Predicting took {foreseeing_s:.1f} s at most, which is not in the times. Each row is a process of
its own; its peak memory is that of the whole process, with torch, tokenizer and text.""")
    return "\n\n".join(notes)


def bench_big(options: argparse.Namespace) -> None:
    from make_big_checkpoint import config, make

    out, folder = options.out or Path("docs/results/big.md"), options.folder
    parent = folder / "parent"
    sizes = BIG | {"layers": options.layers}
    if not (parent / "config.json").is_file():
        make(parent, config(**sizes))
    blocks = min(options.blocks, options.layers)
    name = f"GPTQ, {blocks} of {options.layers} blocks, X^T X of {BIG_WINDOWS[0]} × {BIG_WINDOWS[1]} random tokens"
    try:
        row = run(Job(name, "gptq", str(parent), BIG_WINDOWS, blocks=blocks, most_bytes=3e9))
        num_bytes = (parent / "model.safetensors").stat().st_size
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    slope, off = line_of(row.at[: blocks + 1])
    each = ", ".join(f"{after - before:.0f}" for before, after in zip(row.at, row.at[1 : blocks + 1], strict=False))
    notes = f"""A Llama of {num_bytes / 2e9:.2f} billion random bfloat16 weights ({sizes}),
{num_bytes / 1e9:.1f} GB on disk and {2 * num_bytes / 1e9:.1f} GB in float32. Blocks that are not quantized are copied;
the embedding is rounded to nearest.

Seconds from block to block: {each}. By least squares {slope:.1f} a block, none further than {off:.2f} of a block from
that line; at this rate all {options.layers} take {slope * options.layers / 60:.0f} minutes."""
    write(out, "GPTQ on a checkpoint of 3 billion weights", f"make bench-big BLOCKS={blocks}", [row], notes)
    print(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["smollm2", "big"])
    parser.add_argument("--text", type=Path, help="to calibrate SmolLM2 on: 65,536 tokens at least")
    parser.add_argument("--autoround", type=int, default=2, help="blocks that are learned; 30: all, in all steps")
    parser.add_argument("--tuning-text", type=Path, help="a file or a folder; without it scales are not tuned")
    parser.add_argument("--tuning-minutes", type=float, default=14)
    parser.add_argument("--layers", type=int, default=BIG["layers"])
    parser.add_argument("--blocks", type=int, default=4, help="of the big checkpoint that are quantized")
    parser.add_argument("--folder", type=Path, default=Path("build/big"))
    parser.add_argument("--keep", action="store_true", help="leave the big checkpoint where it is")
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    bench_smollm2(options) if options.what == "smollm2" else bench_big(options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        given = json.loads(sys.argv[2])
        job = Job(**given)
        print(json.dumps(asdict(work(job) if job.tuned_minutes is None else tune_scales(job))))
    else:
        main()
