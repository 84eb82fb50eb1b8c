"""Per-level choice: few levels only; what it starts from is what is learned from (tests/tensors/test_learning.py)."""

from __future__ import annotations

import pytest
import torch

from penjing.errors import PenjingError
from penjing.quant import gsq


def test_more_levels_are_refused():
    with pytest.raises(PenjingError, match="too many levels") as caught:
        gsq.quantize(gsq.Spec(bits=4, group_size=4), torch.ones(2, 4), torch.ones(4))
    assert "autoround" in caught.value.attempt
