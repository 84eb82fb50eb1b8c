"""The reader in C++ (csrc/reader) and the example over it (examples/edge.c), beside Container and Session.

They are compiled here, apart from the engine, and the example is linked with the engine that Python uses.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from penjing.errors import PenjingError
from penjing.format.architecture import Architecture
from penjing.format.container import open_container
from penjing.runtime import binding
from penjing.runtime.session import Session

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REAL = ROOT / "demo" / "smollm2-python.penjing"
ALIGNMENT = 64
COUNT = 2000


def load(name: str):
    """A script beside this file as a module."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiler(variable: str, default: str) -> str:
    path = shutil.which(os.environ.get(variable, default))
    if path is None:
        pytest.skip(f"no {default} to compile the reader with")
    return path


def compile_all(commands: list[list[str]]) -> None:
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def reader_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader as a shared library."""
    out = tmp_path_factory.mktemp("reader") / "libpenjing_reader.so"
    sources = sorted(map(str, (ROOT / "csrc" / "reader").glob("*.cpp")))
    include = ["-I", str(ROOT / "csrc"), "-I", str(ROOT / "csrc" / "include")]
    compile_all([[compiler("CXX", "c++"), "-std=c++17", "-O1", "-fPIC", "-shared", *include, *sources, "-o", str(out)]])
    return out


@pytest.fixture(scope="session")
def edge(reader_library: Path) -> Path:
    """The example as a program."""
    try:
        engine = Path(binding.library()._name)
    except PenjingError as error:
        pytest.skip(str(error))
    out = reader_library.with_name("edge")
    include = ["-I", str(ROOT / "csrc" / "include")]
    libraries = [str(reader_library), str(engine)]
    paths = [f"-Wl,-rpath,{library.parent}" for library in (reader_library, engine)]
    source = str(ROOT / "examples" / "edge.c")
    strict = ["-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-D_POSIX_C_SOURCE=200809L"]
    compile_all([[compiler("CC", "cc"), *strict, *include, source, *libraries, *paths, "-o", str(out)]])
    return out


def run(edge: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(edge), *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def greedy(path: Path, prompt: list[int], count: int, *, context: int = 2048) -> list[int]:
    """What the example must print."""
    session = Session(path, context=context, threads=1)
    eos = open_container(path).architecture.eos_token_ids
    ids: list[int] = []
    tokens = prompt
    for _ in range(count):
        token = int(session.forward(tokens)[0].argmax())
        if token in eos:
            break
        ids.append(token)
        if session.length == context:
            break
        tokens = [token]
    session.close()
    return ids


@pytest.mark.parametrize("number", range(4))
def test_the_example_says_what_python_says(edge, seeds, number):
    prompt = [1, 3, 39]
    done = run(edge, seeds[number], *prompt, "--max-tokens", 24, "--threads", 1 + number % 2)
    assert (done.returncode, done.stderr) == (0, "")
    said = [*map(int, done.stdout.split())]
    assert said == greedy(seeds[number], prompt, 24)
    assert said


def test_the_example_says_what_python_says_of_a_real_model(edge):
    if not REAL.is_file():
        pytest.skip(f"no {REAL.name}: make demo")
    prompt = [1, 4093, 198, 1780, 1072, 260, 15210, 1517, 536, 281, 7761, 47]
    done = run(edge, REAL, *prompt, "--max-tokens", 24, "--threads", 2)
    assert [*map(int, done.stdout.split())] == greedy(REAL, prompt, 24)


def test_the_example_stops(edge, make_container):
    path = make_container()
    prompt = [5, 6, 7]
    free = greedy(path, prompt, 24)
    full = run(edge, path, *prompt, "--max-tokens", 24, "--context", 10)
    assert [*map(int, full.stdout.split())] == greedy(path, prompt, 24, context=10)
    assert len(full.stdout.split()) <= 8
    arch = dataclasses.replace(architecture_of(path), eos_token_ids=(39, free[-1]))
    ended = make_container("ended.penjing", architecture=arch)
    assert [*map(int, run(edge, ended, *prompt).stdout.split())] == free[: free.index(free[-1])]


def test_the_example_complains(edge, make_container, tmp_path):
    path = make_container()
    damaged = tmp_path / "damaged.penjing"
    damaged.write_bytes(path.read_bytes()[:-1])
    for arguments, status, sentence in (
        ((tmp_path / "no.penjing", 1), 1, "cannot open: No such file"),
        ((tmp_path, 1), 1, "not a .penjing file"),
        ((damaged, 1), 1, "tensors do not end where the file ends"),
        ((path, 40), 1, "token 40 (number 0) is outside the vocabulary of 40"),
        ((path, 1, 2, 3, "--context", 2), 1, "do not fit a context of 2"),
        ((path,), 2, "usage"),
        ((path, -1), 2, "usage"),
        ((path, "1x"), 2, "usage"),
        ((path, 1, "--max-tokens"), 2, "usage"),
        ((path, 1 << 40), 2, "usage"),
    ):
        done = run(edge, *arguments)
        assert done.returncode == status, arguments
        assert sentence in done.stderr
        assert done.stdout == ""


def architecture_of(path: Path) -> Architecture:
    with open_container(path) as container:
        return container.architecture


class Reader:
    """pj_file_parse by ctypes: does it take these bytes?"""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.pj_file_error.restype = ctypes.c_char_p
        self.library.pj_file_close.argtypes = (ctypes.c_void_p,)
        self.library.pj_file_parse.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)

    def problem(self, data: bytes) -> str:
        """What it says against them; nothing if it takes them."""
        buffer = np.empty(len(data) + ALIGNMENT, np.uint8)
        begin = -buffer.ctypes.data % ALIGNMENT
        buffer[begin : begin + len(data)] = np.frombuffer(data, np.uint8)
        handle = ctypes.c_void_p()
        if self.library.pj_file_parse(buffer.ctypes.data + begin, len(data), ctypes.byref(handle)):
            return self.library.pj_file_error().decode()
        self.library.pj_file_close(handle)
        return ""


def test_it_takes_what_python_takes(reader_library, seeds, tmp_path):
    """The same verdict on thousands of damaged files.

    Python may be milder where no harm comes of it: it reads true as 1 and 1.0 where a whole number is meant, takes a
    name that is there twice inside the metadata, half surrogate pairs, and leaves what is not aligned to `Model`.
    """
    harness = load("fuzz_harness")
    reader = Reader(reader_library)
    sound = [path.read_bytes() for path in seeds]
    assert [reader.problem(data) for data in sound] == [""] * len(sound)
    path = tmp_path / "damaged.penjing"
    opened = milder = 0
    for number in range(COUNT):
        chance = random.Random(number)
        data = chance.choice(harness.MUTATIONS)(chance, sound[number % len(sound)])
        path.write_bytes(data)
        try:
            open_container(path).close()
            refusal = ""
        except PenjingError as error:
            refusal = str(error)
        problem = reader.problem(data)
        assert problem or not refusal, f"mutation {number}: the reader takes what Python does not: {refusal}"
        opened += not problem
        milder += bool(problem) and not refusal and "not aligned" not in problem
    assert opened > COUNT // 20
    assert milder < COUNT // 100, milder
