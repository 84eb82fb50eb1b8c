"""Several processes give the weights and curves of one, and take up each other's states."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train.conftest import make_tiny
from train.parallel_worker import make_batches, run

from penjing.errors import PenjingError
from penjing.train.parallel import Processes, _plan
from penjing.train.state import load_tensors

WORKER = Path(__file__).with_name("parallel_worker.py")


def launch(processes: int, *jobs: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(WORKER), *jobs], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-9000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Weights, moments and record of a run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    run("ddp", folder, 0)
    return load_tensors(folder / "state.safetensors")


def assert_same(folder: Path, alone) -> None:
    tensors, record = load_tensors(folder / "state.safetensors")
    wanted, before = alone
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        # Adam divides by the root of the second moment: rounding is enlarged where gradients nearly cancel
        torch.testing.assert_close(
            tensor, wanted[name], rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert record["tokens"] == before["tokens"]
    for key in ("loss", "norm"):
        found = [point[key] for point in record["curve"]]
        assert found == pytest.approx([point[key] for point in before["curve"]], rel=1e-4)
    assert [p["loss"] for p in record["validation"]] == pytest.approx(
        [p["loss"] for p in before["validation"]], rel=1e-4
    )


def test_two_and_four_processes_give_the_result_of_one(alone, tmp_path):
    ways = ("ddp", "fsdp", "tensor")
    launch(2, *(f"{way}:{tmp_path / way}:0" for way in ways))
    for way in ways:
        assert_same(tmp_path / way, alone)
    # saved by four, taken up by two, finished by one
    folder = tmp_path / "moved"
    launch(4, f"fsdp:{folder}:2", f"tensor:{tmp_path / 'four'}:0")
    assert_same(tmp_path / "four", alone)
    launch(2, f"fsdp:{folder}:4")
    run("ddp", folder, 0)
    assert_same(folder, alone)


def test_rows_are_shared_and_filled_up(monkeypatch):
    batch = make_batches().at(0)[0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(Processes("ddp", "cpu").share(batch))
    assert [len(share.token_BT) for share in shares] == [2, 2]
    assert sum(float(share.weight_BT.sum()) for share in shares) == float(batch.weight_BT.sum())
    assert torch.equal(shares[1].token_BT[0], batch.token_BT[1])
    assert float(shares[1].weight_BT[1].sum()) == 0
    assert torch.equal(Processes("tensor", "cpu").share(batch).token_BT, batch.token_BT)


def test_a_model_that_cannot_be_split_is_an_error():
    with pytest.raises(PenjingError, match="4 key heads"):
        _plan(make_tiny(num_key_value_heads=4), 3)
    with pytest.raises(PenjingError, match="no way"):
        Processes("pipeline", "cpu")
