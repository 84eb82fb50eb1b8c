"""safetensors files, judged by the safetensors library, and by lies of every kind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.errors import PenjingError
from penjing.format.safetensors_file import (
    VIEWS,
    SafetensorsFile,
    SafetensorsWriter,
    TensorSpec,
    aligned_order,
    ask_for_huge_pages,
)

ROOT = Path(__file__).resolve().parents[2]


def write_raw(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: object, begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_writes(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "a": generator.standard_normal((7, 5)).astype(np.float32),
        "half": generator.standard_normal((3, 2, 4)).astype(np.float16),
        "double": generator.standard_normal(6),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x", {"key": "value"})
    with SafetensorsFile(tmp_path / "x") as file:
        assert file.metadata == {"key": "value"}
        assert file.tensors["half"] == TensorSpec("F16", (3, 2, 4))
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.read(name), array.astype(np.float32))
            np.testing.assert_array_equal(file.raw(name), array)
        np.testing.assert_array_equal(file.read("a", slice(2, 5)), arrays["a"][2:5])
        np.testing.assert_array_equal(file.read("a", slice(5, 2)), arrays["a"][5:2])


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    bits = np.random.default_rng(0).integers(0, 1 << 16, 5000, dtype=np.uint16)
    with SafetensorsWriter(tmp_path / "x", {"w": TensorSpec("BF16", (5000,))}) as writer:
        writer.write("w", bits)
        writer.finish()
    read = SafetensorsFile(tmp_path / "x").read("w")
    np.testing.assert_array_equal(read.view(np.uint32), bits.astype(np.uint32) << 16)


def test_large_reads_go_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("penjing.format.safetensors_file._READ_BYTES", 64)
    weight = np.random.default_rng(0).standard_normal((37, 11)).astype(np.float16)
    safetensors.numpy.save_file({"w": weight}, tmp_path / "x")
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "x").read("w", slice(3, 36)), weight[3:36])


def test_views_are_read_only_and_outlive_the_file(tmp_path):
    safetensors.numpy.save_file({"w": np.arange(6, dtype=np.float32)}, tmp_path / "x")
    file = SafetensorsFile(tmp_path / "x")
    view = file.raw("w")
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    file.close()
    file.close()  # twice is harmless
    assert view[5] == 5


@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(VIEWS)), st.lists(st.integers(0, 5), max_size=3)),
        max_size=6,
    ),
    align=st.sampled_from([8, 64, 4096]),
    reserve=st.integers(0, 300),
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory, shapes, align, reserve):
    path = tmp_path_factory.mktemp("written") / "x"
    specs = {name: TensorSpec(dtype, tuple(shape)) for name, (dtype, shape) in shapes.items()}
    generator = np.random.default_rng(0)
    arrays = {
        name: np.frombuffer(generator.bytes(spec.nbytes), VIEWS[spec.dtype]).reshape(spec.shape)
        for name, spec in specs.items()
    }
    with SafetensorsWriter(path, specs, {"k": "v"}, align=align, header_reserve=reserve) as writer:
        for name in reversed(specs):
            for row in reversed(range(specs[name].num_rows)):  # row by row, last first
                writer.write(name, arrays[name][row : row + 1] if specs[name].shape else arrays[name], row)
        writer.finish()
    with SafetensorsFile(path) as file:
        assert file.tensors == specs
        assert file.data_start % align == 0
        assert file.data_start - 8 - file.header_bytes >= reserve
        for name, spec in specs.items():
            assert file.raw(name).tobytes() == arrays[name].tobytes()
            if spec.nbytes:
                assert file.offsets[name] % min(64, align, spec.nbytes & -spec.nbytes) == 0


def test_alignment_comes_before_order():
    sizes = {"a": 12, "b": 64, "c": 32, "d": 128, "empty": 0}
    specs = {name: TensorSpec("U8", (size,)) for name, size in sizes.items()}
    assert aligned_order(specs) == ["b", "d", "empty", "c", "a"]


def test_rows_are_written_once_and_all(tmp_path):
    with SafetensorsWriter(tmp_path / "x", {"w": TensorSpec("F32", (4, 2))}) as writer:
        writer.write("w", np.zeros((2, 2), np.float32), 1)
        with pytest.raises(ValueError, match="twice"):
            writer.write("w", np.zeros((2, 2), np.float32), 2)
        for wrong in (np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float64), np.zeros((5, 2), np.float32)):
            with pytest.raises(ValueError, match="w is"):
                writer.write("w", wrong, 0)
        with pytest.raises(ValueError, match="2 of 4 rows were never written"):
            writer.finish()
    assert not list(tmp_path.iterdir())


ONE = {"w": entry("F32", [2], 0, 8)}
LIES = {
    "an empty file": (b"", b""),
    "no tensors where bytes are": ({}, bytes(8)),
    "a short file": (ONE, bytes(7)),
    "a long file": (ONE, bytes(9)),
    "overlap": (ONE | {"v": entry("F32", [2], 4, 12)}, bytes(12)),
    "the same bytes twice": (ONE | {"v": entry("F32", [2], 0, 8)}, bytes(8)),
    "a gap": (ONE | {"v": entry("F32", [2], 12, 20)}, bytes(20)),
    "a gap at the start": ({"w": entry("F32", [2], 4, 12)}, bytes(12)),
    "beyond the end": ({"w": entry("F32", [2000], 0, 8000)}, bytes(8)),
    "the wrong size": ({"w": entry("F32", [3], 0, 8)}, bytes(8)),
    "backwards": ({"w": entry("F32", [2], 8, 0)}, bytes(8)),
    "negative": ({"w": entry("F32", [-2], 0, 8)}, bytes(8)),
    "two negatives": ({"w": entry("F32", [-1, -2], 0, 8)}, bytes(8)),
    "overflow to the right size": ({"w": entry("F32", [1 << 62, 8, 2], 0, 0)}, b""),
    "an empty shape that overflows": ({"w": entry("F32", [0, 1 << 40, 1 << 40], 0, 0)}, b""),
    "a size beyond 64 bits": ({"w": entry("F32", [1 << 70], 0, 4 << 70)}, bytes(8)),
    "floats for sizes": ({"w": entry("F32", [2.0], 0, 8)}, bytes(8)),
    "booleans for sizes": ({"w": entry("U8", [True], False, True)}, bytes(1)),
    "an unknown dtype": ({"w": entry("F99", [2], 0, 8)}, bytes(8)),
    "a dtype that is no text": ({"w": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "three offsets": ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, bytes(8)),
    "an unknown key": ({"w": ONE["w"] | {"strides": [1]}}, bytes(8)),
    "an entry that is a list": ({"w": [1]}, bytes(8)),
    "a header that is a list": ([], b""),
    "metadata that is a number": ({"__metadata__": {"a": 1}}, b""),
    "metadata that is a list": ({"__metadata__": []}, b""),
    "a name twice": (
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    "no JSON": (b"{{{{", b""),
    "not UTF-8": (b'{"\xff":1}', b""),
    "depth": (b"[" * 100_000, b""),
    "a number of many digits": (b'{"w":' + b"9" * 5000 + b"}", b""),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_told(tmp_path, lie):
    with pytest.raises(PenjingError) as caught:
        SafetensorsFile(write_raw(tmp_path / "x", *LIES[lie]))
    assert str(tmp_path) in caught.value.where
    assert caught.value.attempt


@pytest.mark.parametrize("length", [0, 1, 3, 100, 1 << 31, 1 << 62, (1 << 64) - 1])
def test_a_header_length_that_lies_is_told(tmp_path, length):
    with pytest.raises(PenjingError):
        SafetensorsFile(write_raw(tmp_path / "x", ONE, bytes(8), length=length))


@pytest.mark.parametrize("size", range(8))
def test_a_file_without_a_header_is_told(tmp_path, size):
    (tmp_path / "x").write_bytes(bytes(size))
    with pytest.raises(PenjingError):
        SafetensorsFile(tmp_path / "x")


def test_a_file_that_is_not_there_or_a_folder_is_told(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(PenjingError):
            SafetensorsFile(path)


def test_integers_are_not_weights(tmp_path):
    safetensors.numpy.save_file({"w": np.arange(3)}, tmp_path / "x")
    with pytest.raises(PenjingError, match="I64"):
        SafetensorsFile(tmp_path / "x").read("w")


@pytest.mark.parametrize("change", ["shrink", "grow", "rewrite"])
def test_a_file_that_changes_while_open_is_told(tmp_path, change):
    path = tmp_path / "x"
    safetensors.numpy.save_file({"w": np.zeros(5000, np.float32)}, path)
    file = SafetensorsFile(path)
    file.check_unchanged()
    if change == "rewrite":
        os.utime(path, (1, 1))
    else:
        os.truncate(path, 8000 if change == "shrink" else 40000)
    with pytest.raises(PenjingError, match="changed"):
        file.check_unchanged()
    with pytest.raises(PenjingError, match="changed"):
        file.raw("w")
    if change == "shrink":  # read does not touch the map, so it can tell instead of dying
        with pytest.raises(PenjingError, match="ends too early"):
            file.read("w")


def test_replacing_a_file_by_rename_does_not_touch_an_open_one(tmp_path):
    path = tmp_path / "x"
    for value in (1.0, 2.0):
        with SafetensorsWriter(path, {"w": TensorSpec("F32", (3,))}) as writer:
            writer.write("w", np.full(3, value, np.float32))
            writer.finish()
        if value == 1.0:
            file = SafetensorsFile(path)
            view = file.raw("w")
    file.check_unchanged()
    assert view.tolist() == [1.0] * 3
    assert SafetensorsFile(path).read("w").tolist() == [2.0] * 3


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
def test_a_map_asks_for_huge_pages(tmp_path):
    path = tmp_path / "x"
    safetensors.numpy.save_file({"w": np.zeros(5000, np.float32)}, path)
    file = SafetensorsFile(path)
    assert file.raw("w").size == 5000
    of_this_map = Path("/proc/self/smaps").read_text().partition(str(path))[2]
    flags = next(line for line in of_this_map.splitlines() if line.startswith("VmFlags:"))
    assert "hg" in flags.split()


def test_a_kernel_without_huge_pages_maps_all_the_same():
    class Map:
        def madvise(self, advice: int) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    ask_for_huge_pages(Map())


def test_reading_a_large_tensor_by_rows_needs_little_memory(tmp_path):
    """Reading goes past the map: resident memory does not grow with the file."""
    code = """
import resource, sys
import numpy as np
from penjing.format.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorSpec
rows, cols = 1 << 15, 2048
with SafetensorsWriter(sys.argv[1], {"w": TensorSpec("BF16", (rows, cols))}) as writer:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for row in range(0, rows, 1024):
        writer.write("w", np.zeros((1024, cols), np.uint16), row)
    writer.finish()
file = SafetensorsFile(sys.argv[1])
for row in range(0, rows, 1024):
    file.read("w", slice(row, row + 1024))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    grown = int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert grown < 40 << 20  # of 128 MB: chunks of 4 and 8 MB, a piece of the file, and slack
