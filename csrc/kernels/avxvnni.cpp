// AVX2 with VNNI in 256 bits (Alder Lake and later, Zen 5): dot is one instruction a register.
#include "kernels/avx2.inl"

namespace penjing {
namespace {

constexpr int kTilePanels = 1, kTileColumns = 6, kTileVectors = 1;  // linear_codes
constexpr int kDirectColumns = 4, kDirectRuns = 1;                  // linear_direct
constexpr bool kUnrollGroups = true;
constexpr bool kColumnPairs = false;
constexpr bool kEndByColumn = false;

constexpr int code_offset(int) { return 0; }
constexpr int dot_width(int) { return 4; }

template <int WIDTH, int VECTORS, int CHAINS>
inline void dot(Ints* acc, const Codes* c, const int8_t* x) {
#pragma GCC unroll 4
  for (int k = 0; k < VECTORS; ++k) {
    const __m256i activations = four_activations(x + 4 * k);
    Ints& sum = acc[k % CHAINS];
    sum.low = _mm256_dpbusd_avx_epi32(sum.low, c[k].low, activations);
    sum.high = _mm256_dpbusd_avx_epi32(sum.high, c[k].high, activations);
  }
}

}  // namespace
}  // namespace penjing

#include "kernels/kernels.inl"

namespace penjing {
const Kernels kAvxVnniKernels = kernel_table("avxvnni");
}
