"""What only a fresh process can show: its peak memory and the time to its first token.

`python -m penjing.measure.fresh first-token PATH` and `… memory PATH KV PROMPT DECODE CONTEXT THREADS`, started by
`run`; each prints one line of JSON. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

import penjing
from penjing.errors import PenjingError

if TYPE_CHECKING:
    from penjing.runtime.session import KvKind

#: any model that penjing is for has loaded and answered long before
TIMEOUT_S = 600.0


def run(*arguments: str) -> dict[str, Any]:
    """Run one of the jobs below in a new process and return what it printed. Raises PenjingError where it failed."""
    import subprocess  # not in the fresh process, whose time counts

    command = [sys.executable, "-m", "penjing.measure.fresh", *arguments]
    try:
        done = subprocess.run(
            command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PenjingError(f"no answer within {TIMEOUT_S:.0f} s", where=" ".join(arguments)) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PenjingError(f"a fresh process failed: {last}", where=" ".join(arguments))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def environment() -> dict[str, str]:
    """What a new process needs to find this very package, also in a source tree that is not installed.

    Python may keep bytecode, as it is there where a package was installed: compiling all modules afresh took 60 ms.
    """
    paths = [str(Path(penjing.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return rest | {"PYTHONPATH": os.pathsep.join(paths)}


def first_token(path: Path) -> dict[str, Any]:
    """Open a packed model and its tokenizer and choose one token."""
    from penjing.data.text import load_tokenizer
    from penjing.format.container import open_container
    from penjing.runtime.session import Session

    container = open_container(path)
    tokenizer = load_tokenizer(container.tokenizer_json(), where=str(path))
    tokens = tokenizer.encode("The", add_special_tokens=False).ids or [0]
    session = Session(container, context=64)
    return {"token": int(session.forward(tokens)[-1].argmax())}


def memory(path: Path, kv: KvKind, prompt: int, decode: int, context: int, threads: int) -> dict[str, Any]:
    """Prefill and decode in a session of `context` positions, then read the process's high-water mark."""
    from penjing.evidence import peak_rss_bytes
    from penjing.runtime.session import Session

    session = Session(path, context=context, threads=threads, kv=kv)
    tokens = (np.arange(prompt, dtype=np.int64) * 7919 % session.vocab_size).astype(np.int32)  # numpy.random has a size
    logits = session.forward(tokens)
    for _ in range(decode):
        logits = session.forward([int(logits[-1].argmax())])
    return {"peak_rss_bytes": peak_rss_bytes()}


def main(arguments: list[str]) -> None:
    job, path, *rest = arguments
    if job == "first-token":
        found = first_token(Path(path))
    else:
        kv, *numbers = rest
        found = memory(Path(path), cast("KvKind", kv), *map(int, numbers))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
