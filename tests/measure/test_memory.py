"""Peak memory is that of a fresh process that did the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penjing.errors import PenjingError
from penjing.measure import fresh
from penjing.measure.memory import measure_memory


def test_memory_of_this_process_is_not_counted(packed_talker: Path) -> None:
    ballast = np.ones(400 << 20, np.uint8)
    found = measure_memory(packed_talker, prompt=32, decode=4, context=64, threads=1)
    assert 10e6 < found.peak_rss_bytes < ballast.nbytes
    assert found.over_file_bytes == found.peak_rss_bytes - packed_talker.stat().st_size
    assert set(found.to_json()) == {"peak_rss_bytes", "over_file_bytes"}


def test_a_larger_context_takes_more(packed_talker: Path) -> None:
    small, large = (
        measure_memory(packed_talker, prompt=context - 8, decode=4, context=context, threads=1).peak_rss_bytes
        for context in (64, 32_768)
    )
    cache = 2 * 2 * 2 * 16 * 32_768  # keys and values, two layers, float16, one head of 16
    assert large - small > 0.8 * cache


def test_keys_and_values_as_codes_take_less(packed_talker: Path) -> None:
    floats, codes = (
        measure_memory(packed_talker, prompt=32_760, decode=4, context=32_768, threads=1, kv=kv).peak_rss_bytes
        for kv in ("f32", "i8")
    )
    fewer = 2 * 2 * (4 * 16 - (16 + 4)) * 32_768  # keys and values, two layers; a head of 16: a byte each and a scale
    assert floats - codes > 0.8 * fewer


def test_what_does_not_fit_the_context(packed_talker: Path) -> None:
    with pytest.raises(PenjingError, match="do not fit a context of 512"):
        measure_memory(packed_talker, context=512)


def test_the_first_token_is_one_of_the_vocabulary(packed_talker: Path) -> None:
    assert 0 <= fresh.run("first-token", str(packed_talker))["token"] < 300


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(PenjingError, match=r"a fresh process failed: .+"):
        fresh.run("first-token", str(tmp_path / "absent.penjing"))
