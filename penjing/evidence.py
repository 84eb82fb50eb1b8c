"""Evidence: what a stage did, on what, on which device, and what was measured before and after.

Records are lines of `evidence.jsonl`, only ever appended to. Failures are records like any other.
A crash can tear at most the last line; reading skips it and says so.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penjing.errors import PenjingError

#: recorded where they were in use; nothing is imported to find out
_PACKAGES = ("penjing", "numpy", "safetensors", "tokenizers", "torch", "transformers", "gguf")


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One record. Digests are sha256 in hex; `before` and `after` are measurements under `measure --json`'s keys.

    `predicted`: "seconds" and "peak_rss_bytes" as they were told before the work, where they were.
    """

    stage: str
    settings: dict[str, Any]
    parent: str | None = None
    child: str | None = None
    corpus: str | None = None
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    device: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    failed: str | None = None  # the error, where the work did not finish
    time: str = field(default_factory=_now)  # UTC, ISO 8601

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: non-finite numbers become strings, because JSON has none."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        entries = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [_plain(entry) for entry in entries]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "item"):  # a numpy or torch scalar
        return _plain(value.item())
    return str(value)


def append(path: Path, evidence: Evidence) -> None:
    """Append one line, durably, in one write. Raises PenjingError where the file cannot be written."""
    line = (
        json.dumps(evidence.to_json(), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"
    )
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # an earlier crash tore the last line: do not join it
            written = os.write(descriptor, line)
            if written != len(line):
                raise OSError("the disk is full")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise PenjingError(
            f"cannot append evidence: {error}", where=str(path), attempt="free space or choose a writable folder"
        ) from error


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole record, oldest first; none where there is no file. A torn line is skipped with a warning."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PenjingError(f"cannot read evidence: {error}", where=str(path)) from error
    records = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not a record")
        except (ValueError, RecursionError) as error:
            warnings.warn(f"{path}, line {number}: skipped an unreadable record ({error})", stacklevel=2)
            continue
        records.append(record)
    return records


def device(isa: str | None = None) -> dict[str, Any]:
    """This machine. `isa` is the kernels in use, where the caller ran the engine (`runtime.binding.isa()`)."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {
        "cpu": _cpu_model(),
        "cores": num_cores(),
        "memory_bytes": memory_bytes,
        "platform": platform.platform(),
    }
    return found | ({"isa": isa} if isa else {})


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "Hardware"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Python and those of the packages that matter which are loaded in this process."""
    from importlib import metadata  # brings mail and archives along: 5 MB that a running model has no use for

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        if package in sys.modules:
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[package] = str(getattr(sys.modules[package], "__version__", "unknown"))
    return found


def reset_peak() -> bool:
    """Reset the high-water mark of this process's resident memory; false where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


class _Peak:
    """Peak resident memory of a stretch of work, which may contain others.

    Linux keeps one high-water mark a process, and writing 5 to clear_refs resets it (man 5 proc). Every open stretch
    takes the mark's value into account before it is reset. Where it cannot be reset the mark of the process is used:
    an upper bound.
    """

    _open: list[_Peak] = []  # noqa: RUF012 - shared by all on purpose

    def __init__(self) -> None:
        self.bytes = 0
        self._note()
        reset_peak()
        _Peak._open.append(self)

    @staticmethod
    def _note() -> None:
        mark = peak_rss_bytes()
        for peak in _Peak._open:
            peak.bytes = max(peak.bytes, mark)

    def close(self) -> int:
        self._note()
        _Peak._open.remove(self)
        return self.bytes


def peak_rss_bytes() -> int:
    """Most memory this process has held so far, mapped files included."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass
class Recorder:
    """What the work found out, filled in by the work; `evidence` is there when it is over."""

    parent: str | None = None
    child: str | None = None
    corpus: str | None = None
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)
    evidence: Evidence | None = None

    def finished(self) -> Evidence:
        if self.evidence is None:
            raise RuntimeError("the work is not over")
        return self.evidence


@contextmanager
def recording(
    stage: str,
    settings: dict[str, Any],
    *,
    path: Path | None = None,
    parent: str | None = None,
    corpus: str | None = None,
    isa: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Recorder]:
    """Measure the work inside: seconds and peak memory; append the record to `path`, also when the work fails.

    with recording("quantize", {"bits": 4}, path=run / "evidence.jsonl") as work:
        work.child = ...
    return work.finished()
    """
    recorder = Recorder(parent=parent, corpus=corpus)
    peak = _Peak()
    start = clock()
    failed: str | None = None
    try:
        yield recorder
    except BaseException as error:  # an interrupt is a result too
        failed = str(error) or type(error).__name__
        raise
    finally:
        recorder.evidence = Evidence(
            stage=stage,
            settings=settings,
            parent=recorder.parent,
            child=recorder.child,
            corpus=recorder.corpus,
            before=recorder.before,
            after=recorder.after,
            predicted=recorder.predicted,
            seconds=clock() - start,
            peak_rss_bytes=peak.close(),
            device=device(isa),
            versions=versions(),
            failed=failed,
        )
        if path is not None:
            append(path, recorder.evidence)
