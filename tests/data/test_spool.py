"""Examples on the disk read as those that were added, and cost no memory."""

from __future__ import annotations

import tempfile
import tracemalloc

import numpy as np
import pytest

from penjing.data.encode import Example
from penjing.data.spool import Spool
from penjing.errors import PenjingError


def _example(size, label=None, seed=0):
    rng = np.random.default_rng(seed)
    return Example(rng.integers(0, 2**31 - 1, size, dtype=np.int32), rng.random(size) < 0.5, label)


def _same(found, expected):
    assert (found.token_T.dtype, found.target_T.dtype, found.label) == (np.int32, np.bool_, expected.label)
    assert np.array_equal(found.token_T, expected.token_T)
    assert np.array_equal(found.target_T, expected.target_T)


def test_examples_come_back_in_order_and_by_number():
    added = [_example(size, label, size) for size, label in ((1, None), (0, 3), (513, 0), (2, None))]
    spool = Spool()
    spool.extend(added[:2])
    _same(spool[1], added[1])
    spool.extend(added[2:])  # reading does not disturb what is added later
    assert len(spool) == 4
    for found, expected in zip(spool, added, strict=True):
        _same(found, expected)
    _same(spool[-1], added[-1])
    for found, expected in zip(spool[1:3], added[1:3], strict=True):
        _same(found, expected)
    with pytest.raises(IndexError):
        spool[4]
    assert list(Spool()) == []


def test_memory_holds_an_index_alone():
    spool, example = Spool(), _example(500)
    spool.extend([example])
    tracemalloc.start()
    spool.extend(example for _ in range(4000))  # 10 MB
    assert sum(len(found.token_T) for found in spool) == 4001 * 500
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 400_000


def test_a_disk_that_is_full_or_missing_is_told(monkeypatch):
    spool = Spool()
    spool._file.close()
    spool._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(PenjingError, match="no space left") as full:
        spool.extend([_example(9)])
    assert full.value.where == tempfile.gettempdir()
    assert "free some space" in full.value.attempt
    spool._file.close()
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(PenjingError, match="no such file") as missing:
        Spool()
    assert missing.value.where == "/nowhere"
