"""Contestants in turns (A B C A B C …), each round in a process of its own; medians over rounds are quoted."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Round = Callable[[], dict[str, Any]]
HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / "peers"


def process(command: Sequence[str | Path]) -> Round:
    """A round is a program whose last line is a JSON object."""

    def run() -> dict[str, Any]:
        done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or f"exit {done.returncode}").splitlines()
            raise SystemExit(f"{command[1]} {command[2]}: {said[-1]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def contest(contestants: Mapping[str, Round], rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Medians of every number of every contestant; `spread`: interquartile range of its decode speed / median."""
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for index in range(rounds):
        for name, run in contestants.items():
            samples[name].append(run())
            say(f"round {index + 1}: {name}: {samples[name][-1]}")
    return {name: medians(runs) for name, runs in samples.items()}


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in runs[0].items():
        numbers = [run[key] for run in runs]
        found[key] = statistics.median(numbers) if isinstance(value, int | float) else value
    decode = [run["decode"] for run in runs]
    low, middle, high = statistics.quantiles(decode, n=4, method="inclusive") if len(decode) > 1 else decode * 3
    return found | {"spread": (high - low) / middle}
