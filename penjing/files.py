"""Files that are whole or not there: write to a temporary name, fsync, rename, fsync the folder.

A temporary file is `.NAME.partial` beside its target and is locked while it is written. One that a killed process
left behind is not locked, so the next writer takes it over; one that another living process writes is an error.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from penjing.errors import PenjingError

if TYPE_CHECKING:
    from typing import Self  # Python 3.11


def os_error(error: OSError, path: Path) -> PenjingError:
    """The same problem as a person reads it."""
    remedies = {
        errno.ENOSPC: "free some space, or write to another disk",
        errno.EDQUOT: "free some space within your quota, or write to another disk",
        errno.EFBIG: "raise the file size limit (ulimit -f), or write to another disk",
        errno.EROFS: "write to a folder that is not read-only",
        errno.EACCES: "check the permissions of the file and its folder",
        errno.EPERM: "check the permissions of the file and its folder",
        errno.ENOENT: "check the spelling of the path",
        errno.ENOTDIR: "check the spelling of the path",
        errno.EISDIR: "name a file, not a folder",
    }
    reason = (error.strerror or str(error)).lower()
    return PenjingError(reason, where=str(path), attempt=remedies.get(error.errno or 0, ""))


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int, path: Path) -> None:
    """Hold an open file or folder for this process alone, until it is closed. PenjingError if another holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PenjingError(
            "another process is writing this", where=str(path), attempt="wait for it, or write elsewhere"
        ) from error


class AtomicFile:
    """A file that appears under its name when `finish` is called, complete and on the disk, or never.

    As a context manager it removes its temporary file unless it was finished. OSErrors become PenjingErrors.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.partial")
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise os_error(error, self.path) from error

    def _open(self) -> int:
        while True:
            descriptor = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                lock(descriptor, self.path)
                # whoever held the lock a moment ago may have renamed or removed the file that was opened here
                if os.path.samestat(os.fstat(descriptor), os.stat(self._temporary)):
                    os.ftruncate(descriptor, 0)
                    return descriptor
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` (C-contiguous) at `offset`."""
        rest = memoryview(data).cast("B")
        try:
            while rest:
                written = os.pwrite(self._descriptor, rest, offset)
                rest, offset = rest[written:], offset + written
        except OSError as error:
            raise os_error(error, self.path) from error

    def finish(self, *, forget: bool = False) -> None:
        """fsync, take the final name (replacing what was there), fsync the folder.

        `forget` what is on the disk now: what was written in small pieces stays in memory in small pages, while
        whoever maps the file afresh can have huge ones.
        """
        try:
            os.fsync(self._descriptor)
            if forget and hasattr(os, "posix_fadvise"):
                with contextlib.suppress(OSError):  # a file system that takes no advice
                    os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.rename(self._temporary, self.path)
            self._close()
            sync_folder(self.path.parent)
        except OSError as error:
            self.abandon()
            raise os_error(error, self.path) from error

    def abandon(self) -> None:
        """Remove the temporary file. Harmless after `finish`."""
        if self._descriptor >= 0:
            self._temporary.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()


def write_file(path: Path, data: bytes) -> None:
    """Write a small file atomically."""
    with AtomicFile(path) as file:
        file.write_at(data, 0)
        file.finish()
