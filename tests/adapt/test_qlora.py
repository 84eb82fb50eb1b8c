"""QLoRA: products and gradients of codes are those of their floats, and the base stays small."""

from __future__ import annotations

import peft
import pytest
import torch

from penjing.adapt import Plan, qlora
from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.measure.torch_model import load
from penjing.quant import apply, binary, rtn, ternary
from penjing.stages.adapt import modules_of
from penjing.stages.quantize import quantize
from penjing.stages.small_base import load_small

WAYS = [
    (rtn, {"bits": 4, "group_size": 4}),
    (rtn, {"bits": 3, "group_size": 4, "symmetric": False}),
    (rtn, {"bits": 8, "group_size": 12}),
    (ternary, {"group_size": 4}),
    (binary, {"group_size": 4}),
]


@pytest.mark.parametrize(("method", "settings"), WAYS)
def test_products_and_gradients_are_those_of_the_floats(method, settings):
    generator = torch.Generator().manual_seed(0)
    quantized = apply(method, method.Spec(**settings), torch.randn(7, 12, generator=generator), torch.ones(12))
    layer = qlora.CodesLinear(quantized, torch.randn(7, generator=generator))
    x_BI = torch.randn(2, 3, 12, generator=generator, requires_grad=True)
    found_BO = layer(x_BI)
    wanted_BO = torch.nn.functional.linear(x_BI, quantized.dequantize(), layer.bias)
    slack = 12 * torch.finfo(torch.float32).eps * 20  # 12 products, all below 20
    torch.testing.assert_close(found_BO, wanted_BO, rtol=0, atol=slack)
    found, wanted = (torch.autograd.grad(y.square().sum(), x_BI)[0] for y in (found_BO, wanted_BO))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=100 * slack)
    half_BO = torch.autocast("cpu", torch.bfloat16)(lambda: layer(x_BI))()
    torch.testing.assert_close(half_BO.float(), wanted_BO, rtol=0, atol=12 * 20 * 2**-8)


def test_four_bits_take_half_a_byte():
    weight_OI = torch.randn(6, 32)
    layer = qlora.CodesLinear(rtn.quantize(rtn.Spec(bits=4, group_size=16), weight_OI))
    assert sum(buffer.nbytes for buffer in layer.buffers()) == 6 * 32 // 2 + 6 * 2 * 2
    assert not list(layer.parameters())


def test_the_small_base_says_what_the_checkpoint_says_and_the_adapter_opens_on_it(tiny_model, bench, tmp_path):
    quantize(open_checkpoint(tiny_model("llama").path), tmp_path / "q", spec={"bits": 4, "group_size": 4})
    checkpoint = open_checkpoint(tmp_path / "q")
    small, floats = load_small(checkpoint), load(checkpoint)
    # embedding and head are rounded to bfloat16 in the one and not in the other
    for name in ("model.embed_tokens", "lm_head"):
        floats.get_submodule(name).weight.data = floats.get_submodule(name).weight.data.bfloat16().float()
        small.get_submodule(name).weight.data = small.get_submodule(name).weight.data.float()
    wanted_BTV = bench.logits(floats)
    slack = 2**-7 * float(wanted_BTV.abs().max())  # the folder's floats are rounded to the parent's type
    torch.testing.assert_close(bench.logits(small), wanted_BTV, rtol=0, atol=slack)
    plan = Plan(modules=modules_of(checkpoint), steps=6)
    adapted = qlora.prepare(qlora.Spec(rank=3), small, plan)
    bench.train(adapted)
    adapted.model.save_pretrained(tmp_path / "adapter")
    opened = peft.PeftModel.from_pretrained(floats, tmp_path / "adapter")
    trained_BTV = bench.logits(adapted.model)
    torch.testing.assert_close(bench.logits(opened), trained_BTV, rtol=0, atol=2 * slack)
    assert float((trained_BTV - wanted_BTV).abs().max()) > 10 * slack


def test_a_base_in_floats_is_refused(tiny_model, bench):
    with pytest.raises(PenjingError, match="quantized base"):
        load_small(open_checkpoint(tiny_model("llama").path))
    with pytest.raises(PenjingError, match="not quantized"):
        bench.prepare("qlora")
