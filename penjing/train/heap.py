"""Freed memory kept for the next step, where the C library would give it back to the system.

Every step frees its activations and asks for the same again. glibc returns what lies at the end of its heap, so each
step gets fresh pages, which the kernel clears one by one: 10% of the time of a step of SmolLM2 (docs/training.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
#: more than any step frees, and than any chunk of a step; an int in C
_KEEP, _LARGEST = (1 << 31) - 1, 1 << 30
#: the largest that glibc would have come to by itself
_DEFAULT = 32 << 20


@contextmanager
def kept() -> Iterator[bool]:
    """Keep freed memory while this lasts, then give it back; whether the C library lets itself be asked."""
    library = _glibc()
    if library is not None:
        library.mallopt(_TRIM_THRESHOLD, _KEEP)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
    try:
        yield library is not None
    finally:
        if library is not None:
            library.mallopt(_TRIM_THRESHOLD, 2 * _DEFAULT)
            library.mallopt(_MMAP_THRESHOLD, _DEFAULT)
            library.malloc_trim(0)


def _glibc() -> Any | None:
    """The C library of this process if it is glibc, whose numbers these are."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
    except (OSError, AttributeError, TypeError):
        return None
    return library
