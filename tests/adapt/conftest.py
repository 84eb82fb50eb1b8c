"""A tiny model to adapt, some documents, and adapting them for a few steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'penjing[fit]'")
pytest.importorskip("peft", reason="pip install 'penjing[fit]'")

from penjing.adapt import Adapted, Plan, technique  # noqa: E402
from penjing.checkpoint import open_checkpoint  # noqa: E402
from penjing.stages.adapt import modules_of, with_penalty  # noqa: E402
from penjing.train.batch import PackedBatches, document  # noqa: E402
from penjing.train.loop import Settings, train  # noqa: E402
from penjing.train.objectives import causal_lm  # noqa: E402

STEPS = 6


class Bench:
    """One tiny Llama, loaded fresh for every use."""

    def __init__(self, base: Any, checkpoint: Any, folder: Path) -> None:
        self._base, self.checkpoint, self.folder = base, checkpoint, folder
        rng = np.random.default_rng(0)
        documents = [document(rng.integers(3, 101, rng.integers(4, 12))) for _ in range(40)]
        self.batches = PackedBatches(documents, rows=2, length=24)
        self.token_BT = torch.from_numpy(rng.integers(3, 101, (2, 9)))

    def base(self) -> Any:
        return copy.deepcopy(self._base)

    def prepare(self, method: str, *, steps: int = STEPS, tasks: tuple[str, ...] = (), **settings: Any) -> Adapted:
        def gradient(model: Any) -> None:
            causal_lm.Objective()(model, self.batches.at(0)[0]).total.backward()

        module = technique(method)
        plan = Plan(modules=modules_of(self.checkpoint), steps=steps, gradient=gradient, tasks=tasks)
        return module.prepare(module.Spec(**settings), self.base(), plan)

    def train(self, adapted: Adapted, *, steps: int = STEPS, folder: str = "run") -> Any:
        found = train(
            adapted.model,
            with_penalty(causal_lm.Objective(), adapted.penalty),
            self.batches,
            Settings(steps=steps, learning_rate=1e-2, warmup=0.0, precision="f32"),
            folder=self.folder / folder,
            before_step=adapted.before_step,
            after_step=adapted.after_step,
            keep=adapted.buffers,
        )
        if adapted.finish is not None:
            adapted.finish()
        return found

    def loss(self, model: Any) -> float:
        with torch.no_grad():
            found = causal_lm.Objective()(model.eval(), self.batches.at(0)[0])
        return float(found.total) / found.count

    def logits(self, model: Any) -> Any:
        with torch.no_grad():
            logit_BTV = model.eval()(input_ids=self.token_BT).logits
        return logit_BTV[:, -self.token_BT.shape[1] :]


@pytest.fixture
def bench(tiny_model: Callable[..., Any], tmp_path: Path) -> Bench:
    tiny = tiny_model("llama")
    return Bench(tiny.model, open_checkpoint(tiny.path), tmp_path)
