"""AWQ lowers the expected loss of rounding, and never raises it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from penjing.checkpoint import open_checkpoint
from penjing.quant import awq
from penjing.tensors.scales import search
from penjing.tensors.statistics import Importance


def model_and_importances(tiny_model, loud):
    """Weights of a layer, and importances that say every `loud`-th input is felt a thousand times as much."""
    parent = open_checkpoint(tiny_model("llama").path)
    weights = {part.name: torch.from_numpy(parent.read_part(part)) for part in parent.parts() if ".1." in part.name}
    importances = {}
    for name, (rows, cols) in parent.architecture.matrix_shapes().items():
        felt_I = torch.ones(cols)
        felt_I[::loud] = 1000.0
        importances[name] = Importance(torch.ones(1, rows), felt_I[None])
    return parent.architecture, weights, importances


def loss(weights, importances, name):
    found = search(weights[name], importances[name].mean_input_I(), bits=2, group_size=4, symmetric=True)
    return importances[name].loss(found.dequantize() - weights[name])


@pytest.mark.parametrize("loud", [1, 7])
def test_the_expected_loss_of_readers_falls(tiny_model, loud):
    architecture, weights, importances = model_and_importances(tiny_model, loud)
    spec = awq.Spec(bits=2, group_size=4)
    changed = weights | awq.change(spec, architecture, 2, weights, importances=importances)
    for readers, norm in ((["q", "k", "v"], "attn_norm"), (["gate", "up"], "mlp_norm"), (["o"], None)):
        names = [f"layers.1.{name}" for name in readers]
        before = sum(loss(weights, importances, name) for name in names)
        after_importances = dict(importances)
        if norm is not None:
            scale_I = weights[f"layers.1.{norm}"] / changed[f"layers.1.{norm}"]
            for name in names:
                known = importances[name]
                after_importances[name] = Importance(known.output_KO, known.input_KI / scale_I.square())
                if name.endswith((".v", ".up")):  # their rows were scaled too, down where o and down went up
                    rows_O = (weights[name] * scale_I / changed[name]).median(dim=1).values
                    after_importances[name] = Importance(
                        known.output_KO * rows_O.square(), after_importances[name].input_KI
                    )
            after = sum(loss(changed, after_importances, name) for name in names)
            assert after <= before * 1.001  # scales are divided out again in float32
            assert loud == 1 or after < 0.9 * before


def test_blocks_without_readers_stay(tiny_model):
    architecture, weights, importances = model_and_importances(tiny_model, 3)
    assert awq.change(awq.Spec(), architecture, 0, weights, importances=importances) == {}
    assert awq.change(awq.Spec(), architecture, architecture.num_layers + 1, weights, importances=importances) == {}


def test_inputs_stay_as_they_were(tiny_model):
    architecture, weights, importances = model_and_importances(tiny_model, 3)
    before = {name: weight.numpy().copy() for name, weight in weights.items()}
    awq.change(awq.Spec(bits=3, group_size=4), architecture, 2, weights, importances=importances)
    for name, weight in weights.items():
        np.testing.assert_array_equal(before[name], weight.numpy())
