"""Adapting on real data: the base model, prompted, against the same model adapted, with 95% intervals.

    python scripts/bench_adapt.py --data FOLDER [--task banking77] [--minutes 5 15] [-o docs/results/adapt.md]

For each task and time: every rate is tried for a part of that time, the one with the best score on the validation part
is trained for all of it (its best weights by validation loss are kept), and the test part is judged once. All of it is
in the results: rates, validation scores, steps. A run that is killed goes on where it was; finished rows are kept.

Shapes: N documents, C classes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench_adapt_data import TASKS, Labelled, Task
from peft import PeftModel

from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.data.encode import codec
from penjing.evidence import device, versions
from penjing.measure.classify import Interval, accuracy, answer_tokens, log_probabilities, macro_f1
from penjing.measure.torch_model import load
from penjing.stages.adapt import Examples, Training, adapt
from penjing.train import precision
from penjing.train.batch import document

PARENT = "smollm2-135m"
MAX_TOKENS = 480  # of a text; what stands in its middle is left out
HELD_OUT = 300  # documents that the loss is taken of while training
TRIAL = 0.2  # of the time for each rate


class Judge:
    """Texts to prompts, prompts to scores."""

    def __init__(self, checkpoint: Checkpoint, task: Task) -> None:
        tokenizer = codec(checkpoint).tokenizer
        self.encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
        self.task = task
        self.answers = answer_tokens(self.encode, task.labels)
        self.asked = self.encode(task.asked)
        self.kind = precision.choose("auto", "cpu")

    def prompt(self, text: str) -> np.ndarray:
        ids = self.encode(text)
        if len(ids) > MAX_TOKENS:
            ids = ids[: MAX_TOKENS // 2] + ids[-MAX_TOKENS // 2 :]
        return np.array(ids + self.asked, np.int32)

    def documents(self, entries: list[Labelled]) -> list[Any]:
        found = []
        for entry in entries:
            prompt = self.prompt(entry.text)
            for label in entry.labels:
                found.append(document([*prompt, self.answers[label]], answer_from=len(prompt), label=label))
        return found

    def scores(self, model: Any, entries: list[Labelled]) -> np.ndarray:
        return log_probabilities(model, [self.prompt(e.text) for e in entries], self.answers, kind=self.kind)

    def truth(self, entries: list[Labelled]) -> np.ndarray:
        truth_NC = np.zeros((len(entries), len(self.task.labels)), bool)
        for row, entry in enumerate(entries):
            truth_NC[row, list(entry.labels)] = True
        return truth_NC

    def judge(self, score_NC: np.ndarray, entries: list[Labelled], threshold: float | None) -> Interval:
        """Accuracy; for texts with several labels macro-F1 of those above `threshold` and the first."""
        truth_NC = self.truth(entries)
        first_N = score_NC.argmax(1)
        if threshold is None:
            return accuracy(first_N, truth_NC.argmax(1))
        predicted_NC = np.exp(score_NC) > threshold
        predicted_NC[np.arange(len(first_N)), first_N] = True
        return macro_f1(predicted_NC, truth_NC)

    def threshold(self, score_NC: np.ndarray, entries: list[Labelled]) -> float | None:
        """The best on validation data."""
        if not self.task.several:
            return None
        return max(np.arange(0.1, 0.6, 0.05).tolist(), key=lambda at: self.judge(score_NC, entries, at).value)


def run(name: str, task: Task, minutes: float, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    parent = open_checkpoint(PARENT)
    judge = Judge(parent, task)
    train = judge.documents(task.train)
    some = np.random.default_rng(1).permutation(len(task.validation))[:HELD_OUT]
    held_out = [task.validation[at] for at in some]
    examples = Examples(documents={name: train}, held_out=judge.documents(held_out))

    def trained(rate: float, time: float, label: str) -> tuple[Any, Any]:
        out = folder / label
        training = Training(rate=rate, minutes=time, steps=100_000, rows=args.rows, evaluations=100_000 // args.every)
        done = adapt(parent, out, examples, method=args.method, training=training, force=True)
        return done, PeftModel.from_pretrained(load(parent), out)

    trials = {}
    for rate in args.rates if len(args.rates) > 1 else ():
        _, model = trained(rate, minutes * TRIAL, f"{name}-{minutes}-{rate}")
        score_NC = judge.scores(model, held_out)
        trials[rate] = judge.judge(score_NC, held_out, judge.threshold(score_NC, held_out)).value
        print(f"{name}: rate {rate}, {minutes * TRIAL:.1f} min: {trials[rate]:.3f} on validation", flush=True)
    rate = max(trials, key=lambda entry: trials[entry]) if trials else args.rates[0]
    done, model = trained(rate, minutes, f"{name}-{minutes}")
    score_NC = judge.scores(model, task.validation)
    threshold = judge.threshold(score_NC, task.validation)
    ran = done.after["training"]
    return {
        "task": name,
        "method": args.method,
        "minutes": minutes,
        "rate": rate,
        "trials": {str(key): value for key, value in trials.items()},
        "measure": "macro-F1" if task.several else "accuracy",
        "threshold": threshold,
        "validation": judge.judge(score_NC, task.validation, threshold).to_json(),
        "test": judge.judge(judge.scores(model, task.test), task.test, threshold).to_json(),
        "epochs": ran["tokens"] / sum(len(entry.token_T) for entry in train),
        "validation_curve": ran["validation"],
        **{key: ran[key] for key in ("steps", "tokens", "seconds", "best_step", "precision")},
        "peak_rss_bytes": done.peak_rss_bytes,
        "trained_parameters": done.after["trained_parameters"],
    }


def base(name: str, task: Task) -> dict[str, Any]:
    parent = open_checkpoint(PARENT)
    judge, model = Judge(parent, task), load(parent)
    threshold = None
    if task.several:
        threshold = judge.threshold(judge.scores(model, task.validation), task.validation)
    test = judge.judge(judge.scores(model, task.test), task.test, threshold).to_json()
    measure = "macro-F1" if task.several else "accuracy"
    return {"task": name, "method": "prompted base", "minutes": 0, "measure": measure, "test": test}


def report(found: dict[str, Any]) -> str:
    """Markdown of all rows."""
    lines = [
        "# Adapting on real data",
        "",
        (
            f"{PARENT}. Versions of the newest row: "
            f"{', '.join(f'{name} {number}' for name, number in found['versions'].items())}."
        ),
        "",
        (
            "The best weights are chosen by validation loss, the rate by validation score where several were tried;"
            " test data is judged once. 95% intervals. Minutes are of training, evaluations on the way included."
        ),
        "",
        "| task | method | minutes | test | interval | validation | rate | epochs | tokens/s | peak memory |",
        "| --- | --- | --: | --: | --- | --: | --: | --: | --: | --: |",
    ]
    for row in found["rows"]:
        test = row["test"]
        cells = [row["task"], row["method"], f"{row['minutes']:g}", f"{row['measure']} {test['value']:.3f}"]
        cells.append(f"{test['low']:.3f} to {test['high']:.3f}")
        if row["minutes"]:
            tried = ", ".join(f"{float(rate):g}" for rate in row["trials"])
            rate = f"{row['rate']:g} of {tried}" if tried else f"{row['rate']:g}, given"
            cells += [f"{row['validation']['value']:.3f}", rate, f"{row['epochs']:.2f}"]
            cells += [f"{row['tokens'] / row['seconds']:.0f}", f"{row['peak_rss_bytes'] / 1e9:.2f} GB"]
        else:
            cells += [""] * 5
        lines.append(f"| {' | '.join(cells)} |")
    runs = dict.fromkeys((row["command"], row["cpu"], row["cores"]) for row in found["rows"])
    lines += ["", *(f"* `{command}`: {cpu}, {cores} cores" for command, cpu, cores in runs)]
    lines += [*(f"* {name}: {split}." for name, split in found["splits"].items()), ""]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        if row["minutes"]:
            points = row["validation_curve"]
            name = f"{row['task']}, {row['method']}, {row['minutes']:g} min"
            axes.plot([point["step"] for point in points], [point["loss"] for point in points], label=name)
    axes.set(xlabel="step", ylabel="validation loss (nats)", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 15])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-4])
    parser.add_argument("--method", default="lora")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--every", type=int, default=60)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "penjing-bench-adapt")
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/results/adapt.md"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    stored = args.out.with_suffix(".json")
    found = json.loads(stored.read_text()) if stored.exists() else {"rows": [], "splits": {}}
    command = " ".join(["python", *sys.argv])
    for name in args.task:
        task = TASKS[name](args.data / name)
        for minutes in (0.0, *args.minutes):
            method = args.method if minutes else "prompted base"
            if any((r["task"], r["minutes"], r["method"]) == (name, minutes, method) for r in found["rows"]):
                continue
            row = run(name, task, minutes, args, args.work) if minutes else base(name, task)
            row |= {"command": command} | {key: device()[key] for key in ("cpu", "cores")}
            print(json.dumps({key: value for key, value in row.items() if "curve" not in key}), flush=True)
            found = {
                "versions": versions(),
                "splits": found["splits"] | {name: task.split},
                "rows": sorted([*found["rows"], row], key=lambda r: (r["task"], r["method"], r["minutes"])),
            }
            args.out.parent.mkdir(parents=True, exist_ok=True)
            stored.write_text(json.dumps(found, indent=1) + "\n")
            args.out.write_text(report(found))
            plot(found["rows"], args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
