#!/usr/bin/env bash
# Kernels on CPUs of other times, as qemu models them: each runs what it can and nothing that it cannot.
#   scripts/check_isas.sh x86_64|aarch64 build/bench/test_kernels
set -euo pipefail
machine=$1 tests=$2

# model, kernels that it must choose among. An instruction that the model lacks ends the test with SIGILL.
check() {
  local model=$1 expected=$2 log found
  log=$("qemu-$machine" -cpu "$model" "$tests" 2> >(grep -v "TCG doesn't support" >&2)) ||
    { echo "$model: failed"; echo "$log"; exit 1; }
  found=$(head -n -1 <<< "$log" | xargs)
  [[ $found == "$expected" ]] || { echo "$model: $found, where $expected was expected"; exit 1; }
  echo "$model: $found; $(tail -n 1 <<< "$log")"
}

case $machine in
  x86_64)
    check core2duo scalar             # 2006: SSSE3
    check Nehalem "scalar sse41"      # 2008
    check SandyBridge "scalar sse41"  # 2011: AVX without AVX2
    check Haswell "scalar sse41 avx2" # 2013
    ;;
  aarch64)
    check cortex-a53 scalar # 2012: no dot product
    check cortex-a76 "scalar neon" # 2018
    check max "scalar neon neon_i8mm"
    ;;
esac

# Inline functions that the compiler did not inline are shared by all object files: one that is compiled for a newer
# instruction set could be the copy that everybody runs. So the kernels' files have none.
shared=$(find "$(dirname "$tests")" -path '*penjing_core*kernels*' -name '*.o' -not -name 'dispatch*' -exec nm -C {} + |
  grep -E ' [WVu] ' | grep -v DW.ref || true)
[[ -z $shared ]] || { echo "functions that other object files may run:"; echo "$shared"; exit 1; }
