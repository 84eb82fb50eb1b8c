#!/usr/bin/env bash
# Kernels on CPUs of other times, as qemu-x86_64 models them: each runs what it can and nothing that it cannot.
#   scripts/check_isas.sh build/bench/test_kernels
set -euo pipefail
tests=$1

# model, kernels that it must choose among. An instruction that the model lacks ends the test with SIGILL.
check() {
  local model=$1 expected=$2 log
  log=$(qemu-x86_64 -cpu "$model" "$tests" 2> >(grep -v "TCG doesn't support" >&2)) || { echo "$model: failed"; echo "$log"; exit 1; }
  local found
  found=$(head -n -1 <<< "$log" | xargs)
  [[ $found == "$expected" ]] || { echo "$model: $found, where $expected was expected"; exit 1; }
  echo "$model: $found; $(tail -n 1 <<< "$log")"
}

check core2duo scalar             # 2006: SSSE3
check Nehalem "scalar sse41"      # 2008
check SandyBridge "scalar sse41"  # 2011: AVX without AVX2
check Haswell "scalar sse41 avx2"

# Inline functions that the compiler did not inline are shared by all object files: one that is compiled for a newer
# instruction set could be the copy that everybody runs. So the kernels' files have none.
objects=$(find "$(dirname "$tests")" -path '*penjing_core*' '(' -name 'avx*.o' -o -name 'sse*.o' ')')
shared=$(nm -C --defined-only $objects | grep -E ' [WVu] ' | grep -v DW.ref || true)
[[ -z $shared ]] || { echo "functions that other object files may run:"; echo "$shared"; exit 1; }
