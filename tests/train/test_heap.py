"""Memory that is freed stays with the process while it is kept, and goes back afterwards."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys

import pytest

from penjing.train import heap

#: how many pages the kernel had to hand out for the same memory, asked for and freed 20 times
_SCRIPT = """
import resource
from contextlib import nullcontext
import numpy as np
from penjing.train.heap import kept

def work():
    for _ in range(20):
        parts = [np.ones(1 << 20, np.float64) for _ in range(16)]  # 8 MB each
        del parts

with {context}:
    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(context: str) -> int:
    done = subprocess.run([sys.executable, "-c", _SCRIPT.format(context=context)], capture_output=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(heap._glibc() is None, reason="another C library")
def test_pages_are_used_again():
    pages = 20 * 16 * (8 << 20) // resource.getpagesize()
    assert faults("nullcontext()") > pages // 4
    assert faults("kept()") < pages // 20


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with heap.kept() as asked:
        assert not asked
