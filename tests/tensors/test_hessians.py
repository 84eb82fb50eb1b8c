"""Second moments: the same however they are streamed, and once for matrices that share their inputs."""

import torch

from penjing.tensors.hessians import Moments


def test_streaming_changes_nothing_but_rounding():
    x_TI = torch.randn(60, 36, generator=torch.Generator().manual_seed(0))
    whole, streamed = Moments(), Moments()
    whole.add("q", x_TI)
    for chunk_TI in torch.split(x_TI, 17):
        streamed.add("q", chunk_TI)
    # a sum of 60 products in another order
    bound = 60 * torch.finfo(torch.float32).eps * float(x_TI.square().sum(0).max())
    assert torch.allclose(whole.hessians()["q"], streamed.hessians()["q"], rtol=0, atol=bound)
    assert torch.allclose(whole.hessians()["q"], x_TI.T @ x_TI, rtol=0, atol=bound)


def test_what_is_read_by_several_is_summed_once():
    moments = Moments()
    generator = torch.Generator().manual_seed(0)
    total_II, other_II = torch.zeros(8, 8), torch.zeros(5, 5)
    for _ in range(3):
        x_TI, y_TI = torch.randn(4, 8, generator=generator), torch.randn(4, 5, generator=generator)
        for name in ("q", "k", "v"):
            moments.add(name, x_TI)
        moments.add("o", y_TI)
        total_II += x_TI.T @ x_TI
        other_II += y_TI.T @ y_TI
    found = moments.hessians()
    assert found["q"] is found["k"] is found["v"]
    assert torch.allclose(found["v"], total_II)
    assert torch.allclose(found["o"], other_II)


def test_equal_inputs_of_different_tensors_are_counted_apart():
    moments = Moments()
    x_TI = torch.ones(2, 3)
    moments.add("gate", x_TI)
    moments.add("up", x_TI.clone())
    assert moments.hessians()["gate"] is not moments.hessians()["up"]
