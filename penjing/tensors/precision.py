"""Products of float32 matrices in bfloat16, sums in float32, where the CPU has tiles for it.

For gradients and statistics of a few thousand tokens: their own noise is far above bfloat16's 0.2% a product. The CPU
is asked, not timed: a run that continues must come to the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def has_tiles() -> bool:
    """Whether this CPU multiplies bfloat16 several times faster than float32 (Intel's AMX)."""
    try:
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    except (AttributeError, RuntimeError):  # an older torch
        return False


@contextmanager
def fast_products(wanted: bool | None = None) -> Iterator[None]:
    """Inside, oneDNN may multiply float32 matrices as bfloat16. `wanted`: by default where the CPU has tiles."""
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    if has_tiles() if wanted is None else wanted:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
