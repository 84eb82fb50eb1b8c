"""GGUF headers that lie: every promise is checked before it is believed, and quickly."""

from __future__ import annotations

import struct
import time

import pytest

from penjing.errors import PenjingError
from penjing.format.gguf_header import read_header

SIZES = {0: (1, 4), 8: (32, 34)}  # F32, Q8_0


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def field(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def tensor(name, shape, kind, offset):
    dims = b"".join(struct.pack("<Q", size) for size in reversed(shape))
    return text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


def gguf(fields=(), tensors=(), data=b"", *, version=3, num_fields=None, num_tensors=None):
    counts = (len(tensors) if num_tensors is None else num_tensors, len(fields) if num_fields is None else num_fields)
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(fields) + b"".join(tensors)
    return header + b"\0" * (-len(header) % 32) + data


def read(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return read_header(path, SIZES)


def test_values_and_tensors(tmp_path):
    fields = [
        field("a", 4, struct.pack("<I", 7)),
        field("b", 8, text("é")),
        field("c", 9, struct.pack("<IQ", 6, 2) + struct.pack("<ff", 0.5, 2)),
        field("d", 9, struct.pack("<IQ", 8, 2) + text("x") + text("")),
        field("e", 7, b"\1"),
        field("f", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 0, 1) + b"\5"),
    ]
    header = read(tmp_path, gguf(fields, [tensor("m", (2, 32), 8, 0), tensor("v", (3,), 0, 96)], bytes(108)))
    assert header.fields == {"a": 7, "b": "é", "c": [0.5, 2.0], "d": ["x", ""], "e": True, "f": [[5]]}
    assert header.tensors["m"].row_bytes == 34
    assert header.tensors["m"].nbytes == 68
    assert header.tensors["v"].offset - header.tensors["m"].offset == 96
    assert header.tensors["v"].num_rows == 1


HUGE = 1 << 60
HOSTILE = {
    "empty": b"",
    "short": b"GGUF",
    "not gguf": b"PK\3\4" + bytes(100),
    "old": gguf(version=1),
    "big-endian": gguf(version=3 << 24),
    "fields that are not there": gguf(num_fields=HUGE),
    "tensors that are not there": gguf(num_tensors=HUGE),
    "a string without end": gguf([field("a", 8, struct.pack("<Q", HUGE))]),
    "an array without end": gguf([field("a", 9, struct.pack("<IQ", 0, HUGE))]),
    "an array of strings without end": gguf([field("a", 9, struct.pack("<IQ", 8, HUGE))]),
    "arrays in arrays in arrays": gguf([field("a", 9, struct.pack("<IQ", 9, 1) * 5000)]),
    "unknown type of value": gguf([field("a", 99, b"")]),
    "bytes that are no text": gguf([field("a", 8, text(b"\xff\xfe"))]),
    "a key twice": gguf([field("a", 0, b"\0")] * 2),
    "alignment of zero": gguf([field("general.alignment", 4, struct.pack("<I", 0))]),
    "alignment of a string": gguf([field("general.alignment", 8, text("32"))]),
    "five dimensions": gguf(tensors=[tensor("t", (1,) * 5, 0, 0)], data=bytes(64)),
    "no dimensions": gguf(tensors=[tensor("t", (), 0, 0)], data=bytes(64)),
    "a size of zero": gguf(tensors=[tensor("t", (0, 4), 0, 0)], data=bytes(64)),
    "half a block": gguf(tensors=[tensor("t", (2, 33), 8, 0)], data=bytes(128)),
    "unknown type of tensor": gguf(tensors=[tensor("t", (4,), 77, 0)], data=bytes(64)),
    "past the end": gguf(tensors=[tensor("t", (17,), 0, 0)], data=bytes(64)),
    "far past the end": gguf(tensors=[tensor("t", (4,), 0, HUGE)], data=bytes(64)),
    "sizes that overflow": gguf(tensors=[tensor("t", (1 << 40, 1 << 40), 0, 0)], data=bytes(64)),
    "overlapping": gguf(tensors=[tensor("t", (8,), 0, 0), tensor("u", (8,), 0, 16)], data=bytes(64)),
    "a tensor twice": gguf(tensors=[tensor("t", (4,), 0, 0), tensor("t", (4,), 0, 16)], data=bytes(64)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_lies_are_refused_quickly(tmp_path, name):
    start = time.perf_counter()
    with pytest.raises(PenjingError, match="GGUF"):
        read(tmp_path, HOSTILE[name])
    assert time.perf_counter() - start < 5


def test_every_truncation_is_refused(tmp_path):
    whole = gguf([field("a", 8, text("value"))], [tensor("t", (4,), 0, 0)], bytes(16))
    for size in range(len(whole)):
        with pytest.raises(PenjingError):
            read(tmp_path, whole[:size])
    read(tmp_path, whole)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(PenjingError, match="no such file"):
        read_header(tmp_path / "absent.gguf", SIZES)
