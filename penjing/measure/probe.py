"""What this machine can do: the limits that every speed is a fraction of."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from penjing.errors import PenjingError
from penjing.evidence import device, num_cores
from penjing.files import write_file
from penjing.runtime import binding

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: larger than the caches of any machine penjing is for
BUFFER_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Rates of all cores together. 1 GB is 1e9 bytes, 1 gmac is 1e9 multiply-adds."""

    isa: str
    cores: int
    read_gb_per_s: float
    int8_gmac_per_s: float
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def probe(*, threads: int | None = None, buffer_bytes: int | None = None, repeats: int = 5) -> Probe:
    """Measure this machine with the engine's own kernels; takes about two seconds.

    The buffer read is at most an eighth of the machine's memory.
    """
    cores = threads or num_cores()
    memory_bytes = int(device()["memory_bytes"])
    size = buffer_bytes or min(BUFFER_BYTES, memory_bytes // 8)
    return Probe(
        isa=binding.isa(),
        cores=cores,
        read_gb_per_s=read_bytes_per_s(size, cores, repeats) / 1e9,
        int8_gmac_per_s=_positive(binding.library().pj_probe_int8(cores, repeats), "int8 rate") / 1e9,
        memory_bytes=memory_bytes,
    )


def read_bytes_per_s(buffer_bytes: int, threads: int, repeats: int = 1) -> float:
    """How fast `threads` threads read a buffer of this size again and again."""
    return _positive(binding.library().pj_probe_read(buffer_bytes, threads, repeats), "read bandwidth")


def _positive(rate: float, what: str) -> float:
    if not 0 < rate < 1e18:
        raise PenjingError(f"could not measure the {what}", where="this machine", attempt="with more free memory")
    return float(rate)


def write_device(path: Path, found: Probe) -> None:
    """Write a probe as `device.toml`."""
    lines = ["# what `penjing probe` measured; limits may be edited by hand"]
    for name, value in found.to_json().items():
        lines.append(f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value!r}")
    write_file(path, ("\n".join(lines) + "\n").encode())


def read_device(path: Path) -> Probe:
    """Read a `device.toml`. Raises PenjingError for one that does not say what a probe says."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PenjingError(f"unreadable device: {error}", where=str(path), attempt="penjing probe -o FILE") from error
    kinds: dict[str, tuple[type, ...]] = {"isa": (str,), "cores": (int,), "memory_bytes": (int,)}
    for entry in fields(Probe):
        value: Any = values.get(entry.name)
        right = isinstance(value, kinds.get(entry.name, (int, float))) and not isinstance(value, bool)
        if not right or (not isinstance(value, str) and not 0 < value < 1e18):
            raise PenjingError(
                f"{entry.name} is {value!r}", where=str(path), attempt="penjing probe -o FILE writes a whole one"
            )
    return Probe(**{entry.name: values[entry.name] for entry in fields(Probe)})
