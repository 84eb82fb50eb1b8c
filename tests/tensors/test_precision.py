"""The setting of products is put back, whatever happens inside."""

from __future__ import annotations

import pytest
import torch

from penjing.tensors.precision import fast_products, has_tiles


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
    assert not has_tiles()
