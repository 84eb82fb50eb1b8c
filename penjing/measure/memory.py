"""Peak resident memory of a packed model at work, in a process of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penjing.errors import PenjingError
from penjing.evidence import num_cores
from penjing.measure import fresh
from penjing.runtime.session import KvKind


@dataclass(frozen=True, kw_only=True)
class Memory:
    """`over_file_bytes` is what the process held beyond the size of the mapped file: Python, caches, work space."""

    peak_rss_bytes: int
    over_file_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_memory(
    path: Path,
    *,
    prompt: int = 512,
    decode: int = 32,
    context: int = 2048,
    threads: int | None = None,
    kv: KvKind = "f16",
) -> Memory:
    """Prefill `prompt` tokens and decode `decode` more, in a session that has room for `context` positions."""
    if prompt + decode > context:
        raise PenjingError(
            f"{prompt} + {decode} tokens do not fit a context of {context}",
            where="memory",
            attempt=f"a context of {prompt + decode}",
        )
    jobs = (prompt, decode, context, threads or num_cores())
    peak = int(fresh.run("memory", str(path), kv, *map(str, jobs))["peak_rss_bytes"])
    return Memory(peak_rss_bytes=peak, over_file_bytes=peak - path.stat().st_size)
