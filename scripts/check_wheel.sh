#!/usr/bin/env bash
# A wheel in a virtual environment of its own, with what it asks for and no more, runs a packed model: no torch, no
# compiler, no source tree.
#   scripts/check_wheel.sh dist/penjing-*.whl MODEL.penjing [PYTHON]
set -euo pipefail
wheel=$(realpath "$1")
model=$(realpath "$2")
python=${3:-python3}
most=$((4 << 20))

size=$(stat -c %s "$wheel")
echo "$(basename "$wheel"): $size bytes"
[[ $size -le $most ]] || { echo "more than $most"; exit 1; }
[[ $wheel == *-py3-none-manylinux_* ]] || { echo "not a wheel for every Python and many Linuxes"; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH VIRTUAL_ENV
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
cd "$work"
venv/bin/python - <<'PYTHON'
import importlib.util
import sys

for name in ("torch", "transformers", "pytest"):
    assert importlib.util.find_spec(name) is None, f"{name} is there"
import penjing

assert "/site-packages/" in penjing.__file__
print("Python", sys.version.split()[0])
PYTHON
said=$(venv/bin/penjing run "$model" "What is the capital of France?" --max-tokens 16 --temperature 0)
echo "$said"
[[ -n $said ]] || { echo "it said nothing"; exit 1; }
