"""The setting of products is put back, whatever happens inside."""

from __future__ import annotations

import pytest
import torch

from penjing.tensors.precision import fast_products, has_bfloat16


def test_it_is_put_back():
    before = torch.backends.mkldnn.matmul.fp32_precision
    inside = []

    def fails():
        with fast_products(True):
            inside.append(torch.backends.mkldnn.matmul.fp32_precision)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert inside == ["bf16"]
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    with fast_products(False):
        assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_an_old_torch_has_none(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert not has_bfloat16()


@pytest.mark.parametrize("instructions", ["amx_bf16", "avx512_bf16"])
def test_either_instruction_will_do(monkeypatch, instructions):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instructions: True, "avx2": True})
    assert has_bfloat16()
    before = torch.backends.mkldnn.matmul.fp32_precision
    with fast_products():
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    assert torch.backends.mkldnn.matmul.fp32_precision == before
