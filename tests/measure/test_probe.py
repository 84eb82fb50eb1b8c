"""What a machine can do, and a file that says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from penjing.errors import PenjingError
from penjing.measure.probe import Probe, probe, read_device, write_device

SOME = Probe(isa="avx2", cores=2, read_gb_per_s=12.5, int8_gmac_per_s=100.0, memory_bytes=8_000_000_000)


def test_this_machine() -> None:
    found = probe(threads=1, buffer_bytes=16 << 20, repeats=2)
    assert set(found.to_json()) == {"isa", "cores", "read_gb_per_s", "int8_gmac_per_s", "memory_bytes"}
    assert found.isa in ("scalar", "sse41", "avx2", "avxvnni", "avx512vnni", "avx512amx", "neon", "neon_i8mm")
    assert 0.05 < found.read_gb_per_s < 10_000
    assert 0.01 < found.int8_gmac_per_s < 100_000
    assert found.memory_bytes > 100e6


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    write_device(path, SOME)
    assert read_device(path) == SOME


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cores = 2", "cores = 2.5"),
        ("cores = 2", "cores = 0"),
        ("cores = 2", ""),
        ("cores = 2", "cores = true"),
        ("12.5", "nan"),
        ("12.5", "-1.0"),
        ('"avx2"', "7"),
        ('"avx2"', '"avx2'),
    ],
)
def test_a_device_that_says_something_else(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "device.toml"
    write_device(path, SOME)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(PenjingError) as caught:
        read_device(path)
    assert caught.value.where == str(path)


def test_no_device(tmp_path: Path) -> None:
    with pytest.raises(PenjingError, match="unreadable device"):
        read_device(tmp_path / "absent.toml")
