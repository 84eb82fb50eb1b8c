"""What calibration text does: the KL that a quick technique leaves, by number and length of windows and by domain.

Every text is split; calibration windows come from one part, held-out windows from the other. Texts are judged on each
other's held-out parts too: what a domain gives one job it may take from another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penjing.checkpoint import Checkpoint
from penjing.data.text import Corpus, Windows, check_disjoint, split
from penjing.errors import PenjingError
from penjing.measure.compare import held_out_windows
from penjing.recipe.trials import Rounding, Trials
from penjing.stages import Progress
from penjing.stages.blocks import block_of
from penjing.stages.calibrate import calibrate
from penjing.stages.calibration_text import calibration_windows


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to calibrate: `texts` in equal shares, and the KL on each text's held-out windows, nats a token."""

    texts: tuple[str, ...]
    length: int
    windows: int
    kl: dict[str, float]


def calibration_effects(
    parent: Checkpoint,
    texts: Mapping[str, Corpus],
    *,
    counts: Sequence[int],
    lengths: Sequence[int],
    method: str = "scale_search",
    settings: Mapping[str, Any] | None = None,
    num_layers: int = 6,
    held_out: int = 4,
    held_out_length: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Row]:
    """Calibrate and round `num_layers` layers, evenly spaced, in every combination; each text alone, then all mixed.

    More windows begin with those of fewer. Raises PenjingError, before the work, for a text that is too short, and
    where calibration and held-out parts overlap.
    """
    rounding = Rounding(method, settings or {})
    parts = {name: split(text, seed=seed) for name, text in texts.items()}
    tests = {name: held_out_windows(parent, apart, held_out_length, held_out) for name, (_, apart) in parts.items()}
    pools = {
        (name, length): _pool(parent, name, learnt, length, max(counts))
        for name, (learnt, _) in parts.items()
        for length in lengths
    }
    for pool in pools.values():
        for test in tests.values():
            check_disjoint(pool, test)
    trials = {name: Trials(parent, test) for name, test in tests.items()}
    chosen = _matrices(parent, num_layers)
    wanted = list(_combinations(list(texts), lengths, counts))
    found: list[Row] = []
    for mix, length, count in wanted:
        if progress is not None:
            progress(f"{'+'.join(mix)}, {count} x {length}", len(found), len(wanted))
        windows = _mixed([pools[name, length] for name in mix], count)
        with tempfile.TemporaryDirectory(prefix="penjing-") as folder:
            importances = calibrate(parent, windows, cache=Path(folder) / "importance.safetensors", seed=seed)
        weights = next(iter(trials.values()))
        changed = {name: rounding(name, weights.weight(name), importances[name]) for name in chosen}
        judged = {name: trial.judge({"": changed})[""].kl_to_parent for name, trial in trials.items()}
        kls = {name: kl for name, kl in judged.items() if kl is not None}
        found.append(Row(texts=mix, length=length, windows=count, kl=kls))
    if progress is not None:
        progress("calibration", len(found), len(wanted))
    return found


def _pool(parent: Checkpoint, name: str, text: Corpus, length: int, count: int) -> Windows:
    """As many windows as any combination takes; evenly spaced in a text that is shuffled, so any prefix is fair."""
    found = calibration_windows(parent, text, length=length, count=count)
    if len(found.tokens_WT) < count:
        raise PenjingError(
            f"the text has {len(found.tokens_WT)} windows of {length} tokens to calibrate on, {count} are asked for",
            where=name,
            attempt=f"more text, or --windows up to {len(found.tokens_WT)}",
        )
    return found


def _combinations(
    names: Sequence[str], lengths: Sequence[int], counts: Sequence[int]
) -> Iterator[tuple[tuple[str, ...], int, int]]:
    mixes: list[tuple[str, ...]] = [(name,) for name in names]
    for mix in [*mixes, tuple(names)] if len(names) > 1 else mixes:
        for length in lengths:
            for count in sorted(set(counts)):
                if count >= len(mix):
                    yield mix, length, count


def _mixed(pools: Sequence[Windows], count: int) -> Windows:
    """The first windows of each in equal shares; what does not divide goes to the first of them."""
    shares = [count // len(pools) + (index < count % len(pools)) for index in range(len(pools))]
    tokens_WT = np.concatenate([pool.tokens_WT[:share] for pool, share in zip(pools, shares, strict=True)])
    sizes = [pool.num_bytes * share // len(pool.tokens_WT) for pool, share in zip(pools, shares, strict=True)]
    return Windows(tokens_WT, sum(sizes))


def _matrices(parent: Checkpoint, num_layers: int) -> list[str]:
    """Of evenly spaced layers, neither the first nor the last where there are enough."""
    layers = parent.architecture.num_layers
    count = min(num_layers, layers)
    chosen = {(2 * n + 1) * layers // (2 * count) + 1 for n in range(count)}  # as blocks
    return [name for name in parent.architecture.matrix_shapes() if block_of(name, layers) in chosen]
