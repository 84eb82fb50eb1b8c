"""What test_parallel starts under torchrun: jobs WAY:FOLDER:STOP, one training each, stopped before step STOP."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from train.conftest import make_documents, make_tiny
from train.test_loop import Killed, stop_before

from penjing.train.batch import PackedBatches
from penjing.train.loop import Settings, held_out_loss, train
from penjing.train.objectives.causal_lm import Objective

SETTINGS = Settings(steps=6, learning_rate=1e-2, precision="f32", save_every_s=0.0, evaluate_every=3, micro_tokens=32)


def make_batches() -> PackedBatches:
    """Three rows a batch: no number of processes divides them all."""
    return PackedBatches(make_documents(60), rows=3, length=32)


def run(way: str, folder: Path, stop: int) -> None:
    torch.set_num_threads(1)
    model = make_tiny(num_key_value_heads=4)
    batches = make_batches()
    hook = stop_before(stop) if stop else None
    try:
        train(model, Objective(), batches, replace(SETTINGS, parallel=way), folder=folder, before_step=hook,
              validate=held_out_loss(Objective(), batches.at(9)))  # fmt: skip
    except Killed:
        assert stop


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for job in sys.argv[1:]:
        way, folder, stop = job.split(":")
        run(way, Path(folder), int(stop))
    dist.barrier()
    dist.destroy_process_group()
    # a run that was stopped keeps its groups alive, and gloo's threads now and then abort an interpreter that ends
    # (github.com/pytorch/pytorch/pull/179291)
    sys.stdout.flush()
    os._exit(0)
