// AVX-512 with VNNI: Ice Lake, Zen 4 and later.
#include "kernels/avx512.inl"
#include "kernels/kernels.inl"

namespace penjing {
const Kernels kAvx512VnniKernels = kernel_table("avx512vnni");
}
