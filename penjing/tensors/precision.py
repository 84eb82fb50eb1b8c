"""Products of float32 matrices in bfloat16, sums in float32, where the CPU has instructions for it.

For gradients and statistics of a few thousand tokens: their own noise is far above bfloat16's 0.2% a product. The CPU
is asked, not timed: a run that continues must come to the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32: AMX several times, AVX-512's instruction 2.2 times
    (a Zen 5, 512 x 576 x 1536: 126 billion multiply-adds a second instead of 54)."""
    try:
        capabilities = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):  # an older torch
        return False
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@contextmanager
def fast_products(wanted: bool | None = None) -> Iterator[None]:
    """Inside, oneDNN may multiply float32 matrices as bfloat16. `wanted`: by default where the CPU has
    instructions for it."""
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    if has_bfloat16() if wanted is None else wanted:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
