"""Files that are whole or not there: really killed, really full, really read-only."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penjing.errors import PenjingError
from penjing.files import AtomicFile, os_error, write_file

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_file_appears_only_when_finished(tmp_path):
    path = tmp_path / "x"
    with AtomicFile(path) as file:
        file.write_at(b"world", 5)
        file.write_at(b"hello", 0)
        assert not path.exists()
        file.finish()
    assert path.read_bytes() == b"helloworld"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x"
    write_file(path, b"old")
    with AtomicFile(path) as file:
        file.write_at(b"new", 0)  # and never finished, as after an exception
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_are_refused(tmp_path):
    with AtomicFile(tmp_path / "x"), pytest.raises(PenjingError, match="another process"):
        AtomicFile(tmp_path / "x")
    write_file(tmp_path / "x", b"free again")


def test_what_a_killed_writer_left_is_taken_over(tmp_path):
    code = """
import sys, time
from penjing.files import AtomicFile
file = AtomicFile(sys.argv[1]); file.write_at(b"torn" * 1000, 0); print("ready", flush=True); time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    path = tmp_path / "x"
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1  # the temporary file of the dead
    write_file(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    """A limit on file size stands in for it: the same error path, without needing a disk of one's own."""
    code = """
import resource, signal, sys
from penjing.errors import PenjingError
from penjing.files import write_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
try:
    write_file(__import__("pathlib").Path(sys.argv[1]), bytes(20000))
except PenjingError as error:
    print(error)
"""
    done = run_python(code, tmp_path / "x")
    assert "too large" in done.stdout, done.stderr
    assert "try:" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_told():
    for folder in ("/proc/1", "/nonexistent-folder"):
        with pytest.raises(PenjingError) as caught:
            write_file(Path(folder) / "x", b"")
        assert folder in caught.value.where
        assert caught.value.attempt


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_system_errors_have_a_remedy(code):
    error = os_error(OSError(code, os.strerror(code)), Path("/somewhere/x"))
    assert error.attempt
    assert error.where == "/somewhere/x"


def test_time_of_change_is_now(tmp_path):
    before = time.time() - 1
    write_file(tmp_path / "x", b"1")
    assert (tmp_path / "x").stat().st_mtime >= before


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no advice to give here")
@pytest.mark.parametrize("forget", [False, True])
def test_a_file_can_be_forgotten_once_it_is_on_the_disk(tmp_path, monkeypatch, forget):
    """What the kernel makes of it is its own affair: a busy one keeps a page here and there."""
    done = []
    really_sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("sync") or really_sync(descriptor))
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *advice: done.append(advice))
    with AtomicFile(tmp_path / "x") as file:
        file.write_at(b"1", 0)
        file.finish(forget=forget)
    whole = (0, 0, os.POSIX_FADV_DONTNEED)
    assert done == (["sync", whole, "sync"] if forget else ["sync", "sync"])  # the file, then its folder
    assert (tmp_path / "x").read_bytes() == b"1"


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no advice to give here")
def test_a_file_system_that_takes_no_advice_keeps_the_file(tmp_path, monkeypatch):
    def refuse(*_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    with AtomicFile(tmp_path / "x") as file:
        file.write_at(b"1", 0)
        file.finish(forget=True)
    assert (tmp_path / "x").read_bytes() == b"1"
