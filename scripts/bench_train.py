"""Training beside transformers + peft: tokens/s, peak memory, and the loss curves. Markdown, JSON and a plot.

    python scripts/bench_train.py --peer-python PYTHON --text FILE… [-o docs/results/train.md] [--only lora]

All contestants of a group live at the same time, each in a process of its own, and make a step in turn: what else the
machine does hits all of them alike. They start from the same weights and see the same rows of real text; a loss is that
of the step's rows before they were learnt. Each process's own high-water mark is its memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROWS, LENGTH = 4, 512
PEER = Path(__file__).parent / "peers" / "peft_train.py"
RATE = {"lora": 1e-3, "full": 5e-5}
#: name to (who, method, precision); the first of a group is what the others are compared with
GROUPS = {
    "lora": [("penjing", "lora", "auto"), ("transformers + peft", "lora", "f32")],
    "lora-other": [
        ("penjing", "lora", "auto"),
        ("penjing", "lora", "f32"),
        ("transformers + peft", "lora", "bf16 autocast"),
    ],
    "full": [("penjing", "full", "auto"), ("transformers", "full", "f32")],
}


@dataclass
class Row:
    group: str
    name: str
    method: str
    precision: str
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_rss_bytes: int = 0
    tokens: int = ROWS * LENGTH

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / statistics.median(self.seconds[1:])  # the first step warms up


class Contestant:
    """A process that makes one step for every line it gets."""

    def __init__(self, row: Row, command: list[str]) -> None:
        self.row = row
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def step(self) -> None:
        assert self._process.stdin is not None
        start = time.perf_counter()
        print("go", file=self._process.stdin, flush=True)
        self.row.losses.append(self._answer()["loss"])
        self.row.seconds.append(time.perf_counter() - start)

    def finish(self) -> None:
        last = self._answer()
        self.row.peak_rss_bytes = last["peak_rss_bytes"]
        self.row.precision = last.get("precision", self.row.precision)
        self._process.wait()

    def cut(self) -> None:
        """End early: its memory so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        self.row.peak_rss_bytes = 1024 * int(status.split("VmHWM:")[1].split()[0])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"{self.row.name} ended early")


def work(model_folder: str, tokens_file: str, method: str, precision: str, threads: int, rate: float) -> None:
    """The contestant penjing: `train` itself, waiting before each step."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from penjing.evidence import peak_rss_bytes
    from penjing.train.batch import PackedBatches, document
    from penjing.train.loop import Settings, train
    from penjing.train.objectives import Loss
    from penjing.train.objectives.causal_lm import Objective

    class Fixed(PackedBatches):
        """The rows of a file in their order."""

        def at(self, step: int) -> list[Any]:
            from penjing.train.batch import pack, stack

            return [stack([pack([document(row)]) for row in tokens_SBT[step]])]

    torch.set_num_threads(threads)
    tokens_SBT = np.load(tokens_file)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    torch.manual_seed(0)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    documents = [document(row) for row in tokens_SBT.reshape(-1, tokens_SBT.shape[-1])]
    batches = Fixed(documents, rows=tokens_SBT.shape[1], length=tokens_SBT.shape[2])
    settings = Settings(
        steps=len(tokens_SBT),
        learning_rate=rate,
        warmup=0.0,
        schedule="constant",
        precision=precision,
        save_every_s=1e9,
    )

    sums = [0.0, 0.0]

    def objective(model: Any, batch: Any) -> Loss:
        found = Objective()(model, batch)
        sums[0], sums[1] = sums[0] + float(found.total.detach()), sums[1] + found.count
        return found

    def wait(step: int) -> None:
        sys.stdin.readline()
        sums[:] = 0.0, 0.0

    def tell(what: str, done: int, of: int) -> None:
        print(json.dumps({"loss": sums[0] / sums[1]}), flush=True)

    print(json.dumps({"ready": True}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = train(model, objective, batches, settings, folder=Path(folder), before_step=wait, progress=tell)
    print(json.dumps({"peak_rss_bytes": peak_rss_bytes(), "precision": found.precision}), flush=True)


def run_group(name: str, folder: Path, tokens: Path, options: argparse.Namespace) -> list[Row]:
    contestants: list[Contestant] = []
    end = time.perf_counter() + 60 * options.minutes
    try:
        for who, method, precision in GROUPS[name]:
            row = Row(name, who, method, precision)
            common = [str(folder), str(tokens), "--method", method, "--threads", str(options.threads)]
            common += ["--learning-rate", str(RATE[method])]
            if who == "penjing":
                command = [sys.executable, __file__, "--work", *common, "--precision", precision]
            else:
                autocast = ["--autocast"] if precision != "f32" else []
                command = [str(options.peer_python), str(PEER), *common, *autocast]
            contestants.append(Contestant(row, command))
        for step in range(len(np.load(tokens, mmap_mode="r"))):
            for contestant in contestants:
                contestant.step()
            took = [contestant.row.seconds[-1] for contestant in contestants]
            if time.perf_counter() + sum(took) > end:
                break
            print(f"{name}: step {step + 1}", *(f"{seconds:.1f} s" for seconds in took), file=sys.stderr)
        else:
            for contestant in contestants:
                contestant.finish()
        for contestant in contestants:
            if not contestant.row.peak_rss_bytes:
                contestant.cut()
    finally:
        for contestant in contestants:
            contestant.close()
    return [contestant.row for contestant in contestants]


def write_tokens(model_folder: Path, texts: list[Path], steps: int, out: Path, length: int = LENGTH) -> None:
    """The first windows of the texts, shuffled, as [steps, rows, length]."""
    from penjing.data.text import Corpus, load_tokenizer, read_text, tokenize

    tokenizer = load_tokenizer((model_folder / "tokenizer.json").read_text(encoding="utf-8"))
    documents = []
    for path in texts:
        text = read_text(path)
        lines = [json.loads(line)["text"] for line in text.splitlines()] if path.suffix == ".jsonl" else [text]
        documents += lines
    token_N, _ = tokenize(tokenizer, Corpus(tuple(documents)))
    windows = token_N[: len(token_N) // length * length].reshape(-1, length)
    order = np.random.default_rng(0).permutation(len(windows))[: steps * ROWS]
    if len(order) < steps * ROWS:
        raise SystemExit(f"the text has {len(windows)} windows, {steps} steps need {steps * ROWS}")
    np.save(out, windows[order].reshape(steps, ROWS, length))


def write_model(folder: Path) -> None:
    """The packaged SmolLM2-135M in float32, for transformers."""
    from penjing.checkpoint import open_checkpoint
    from penjing.measure.torch_model import load

    checkpoint = open_checkpoint("smollm2-135m")
    load(checkpoint).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json or "", encoding="utf-8")


def report(rows: list[Row], out: Path) -> None:
    """Keep the groups that were not run this time."""
    record = out.with_suffix(".json")
    kept = [Row(**entry) for entry in json.loads(record.read_text())["rows"]] if record.exists() else []
    fresh = {row.group for row in rows}
    rows = [row for row in kept if row.group not in fresh] + rows
    rows.sort(key=lambda row: list(GROUPS).index(row.group))
    record.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    out.write_text(table(rows) + "\n")
    plot(rows, out.with_suffix(".png"))
    print(table(rows))


def table(rows: list[Row]) -> str:
    """Ratios are of penjing (auto) to the row, within its group: above 1 in speed is faster, below 1 in memory less."""
    from penjing.evidence import device, versions

    cpu = device()
    lines = [
        f"SmolLM2-135M, {ROWS} × {LENGTH} tokens a step, real text; {cpu['cpu']}, {cpu['cores']} cores.",
        f"Steps in turn, medians; peak memory of whole processes. {', '.join(map(' '.join, versions().items()))}.",
        "",
        "| trained | who | precision | tokens/s | penjing is faster by | memory | penjing needs | loss, last quarter |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        best = next(other for other in rows if other.group == row.group)
        own = row is best
        quarter = row.losses[-max(1, len(row.losses) // 4) :]
        cells = [
            {"lora": "LoRA r16, all linear layers", "full": "everything"}[row.method],
            row.name,
            row.precision,
            f"{row.tokens_per_s:.0f}",
            "" if own else f"{best.tokens_per_s / row.tokens_per_s:.2f} ×",
            f"{row.peak_rss_bytes / 1e9:.2f} GB",
            "" if own else f"{best.peak_rss_bytes / row.peak_rss_bytes:.2f} of it",
            f"{statistics.mean(quarter):.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[Row], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, method in zip(axes, ("lora", "full"), strict=True):
        for row in rows:
            if row.method == method:
                style = "-" if row.name == "penjing" else "--"
                axis.plot(range(1, len(row.losses) + 1), row.losses, style, label=f"{row.name}, {row.precision}")
        axis.set(title=method, xlabel="step", ylabel="loss (nats a token)")
        axis.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--model", type=Path, help="a folder of transformers; without it the packaged SmolLM2-135M")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=9.0, help="of a group at most; it then has fewer steps")
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=list(GROUPS), action="append")
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/results/train.md"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / "model"
        if options.model is None:
            model.mkdir()
            write_model(model)
        tokens = Path(folder) / "tokens.npy"
        write_tokens(model, options.text, options.steps, tokens, options.length)
        for name in options.only or GROUPS:
            rows += run_group(name, model, tokens, options)
    for row in rows:
        row.tokens = ROWS * options.length
    report(rows, options.out)


def work_options() -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", action="store_true")
    parser.add_argument("model_folder")
    parser.add_argument("tokens_file")
    parser.add_argument("--method")
    parser.add_argument("--precision")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--learning-rate", dest="rate", type=float)
    found = vars(parser.parse_args())
    del found["work"]
    return found


if __name__ == "__main__":
    if "--work" in sys.argv:
        work(**work_options())
    else:
        main()
