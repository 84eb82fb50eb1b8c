"""Files that lie: a small valid `.penjing` is damaged thousands of times. Each opens and runs, or raises PenjingError.

It happens in a process of its own, so that a crash is seen and told with the number of the mutation that made it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HARNESS = Path(__file__).with_name("fuzz_harness.py")
ROOT = Path(__file__).resolve().parents[2]
COUNT = 3000


def test_damaged_files_never_crash(make_container, tmp_path):
    command = [sys.executable, str(HARNESS), str(make_container()), str(tmp_path), "0", str(COUNT)]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False
    )
    last = (tmp_path / "mutation").read_text()
    assert done.returncode == 0, f"mutation {last} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    counts = dict(line.split() for line in done.stdout.splitlines())
    # both ends must have been reached often, or the mutations are too tame or too wild to find anything
    assert int(counts["refused"]) > COUNT // 4
    assert int(counts["opened"]) > COUNT // 20
    assert int(counts["refused"]) + int(counts["opened"]) == COUNT
