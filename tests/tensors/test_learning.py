"""Learning lowers the block's error, never raises it, and is the same again with the same seed."""

from __future__ import annotations

import pytest
import torch

from penjing.quant import autoround, gsq


def block(seed=0, size=16, inner=24):
    """Two matrices with something curved between, whose inputs are strongly correlated."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "up": torch.randn(inner, size, generator=generator) / size**0.5,
        "down": torch.randn(size, inner, generator=generator) / inner**0.5,
    }
    mix = torch.randn(size, size, generator=generator) @ torch.diag(torch.linspace(0.1, 2, size))
    inputs = [torch.randn(32, size, generator=generator) @ mix for _ in range(6)]

    def forward(changed, x_TH):
        now = weights | dict(changed)
        return torch.nn.functional.silu(x_TH @ now["up"].T) @ now["down"].T

    return weights, forward, inputs, [forward({}, x_TH) for x_TH in inputs]


def error(codes, forward, inputs, targets):
    weights = {name: found.dequantize() for name, found in codes.items()}
    return sum(float((forward(weights, x) - y).square().sum()) for x, y in zip(inputs, targets, strict=True))


@pytest.mark.parametrize(
    ("method", "spec", "least"),
    [
        (autoround, autoround.Spec(bits=2, group_size=8, steps=60), 0.8),
        (autoround, autoround.Spec(bits=4, group_size=8, steps=60, symmetric=False), 0.8),
        (gsq, gsq.Spec(bits=2, group_size=8, steps=60), 0.8),
        (gsq, gsq.Spec(bits=3, group_size=8, steps=60), 0.8),
    ],
)
def test_the_error_of_the_block_falls(method, spec, least):
    weights, forward, inputs, targets = block()
    specs = dict.fromkeys(weights, spec)
    importances = {name: torch.ones(weight.shape[1]) for name, weight in weights.items()}
    start = {name: method.quantize(spec, weights[name], importances[name]) for name in weights}
    arguments = (specs, weights, importances, forward, inputs, targets, 3)
    found = method.quantize_block(*arguments)
    assert error(found, forward, inputs, targets) < least * error(start, forward, inputs, targets)
    again = method.quantize_block(*arguments)
    for name, codes in found.items():
        assert torch.equal(codes.code_ONG, again[name].code_ONG)
        assert torch.equal(codes.scale_ON, again[name].scale_ON)
        assert codes.code_ONG.max() < 1 << spec.bits


@pytest.mark.parametrize("method", [autoround, gsq])
def test_learning_that_makes_it_worse_is_dropped(method):
    weights, forward, inputs, targets = block()
    spec = method.Spec(bits=2, group_size=8, steps=1, rate=1e6)
    importances = {name: torch.ones(weight.shape[1]) for name, weight in weights.items()}
    found = method.quantize_block(dict.fromkeys(weights, spec), weights, importances, forward, inputs, targets, 0)
    for name, codes in found.items():
        assert torch.equal(codes.code_ONG, method.quantize(spec, weights[name], importances[name]).code_ONG)
