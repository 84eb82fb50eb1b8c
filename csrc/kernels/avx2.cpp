// AVX2 with FMA and F16C: 16-bit pairs on the way to 32-bit sums.
#include "kernels/avx2.inl"

namespace penjing {
namespace {

constexpr int kTilePanels = 1, kTileColumns = 3, kTileVectors = 2;  // linear_codes
constexpr int kDirectColumns = 2, kDirectRuns = 1;                  // linear_direct
constexpr bool kUnrollGroups = false;
constexpr bool kColumnPairs = false;
constexpr bool kEndByColumn = false;

// 8-bit codes less 128 are signed; up to 6 bits they stay as they are.
constexpr int code_offset(int width) { return width == 8 ? 128 : 0; }
constexpr int dot_width(int bits) { return bits == 8 ? 8 : 6; }

// Two vectors of 32 codes times activations, exact in 16 bits: 4 * 63 * 127 < 2^15.
inline __m256i dot2_narrow(__m256i acc, __m256i c0, __m256i c1, __m256i x0, __m256i x1) {
  const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(c0, x0), _mm256_maddubs_epi16(c1, x1));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// |code - 128| times the activation with its sign: pairs reach 2 * 128 * 127 < 2^15.
inline __m256i dot_wide(__m256i acc, __m256i c, __m256i x) {
  const __m256i code = _mm256_xor_si256(c, _mm256_set1_epi8(-128));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(x, code));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
template <int WIDTH, int VECTORS, int CHAINS>
inline void dot(Ints* acc, const Codes* c, const int8_t* x) {
  static_assert(VECTORS % 2 == 0, "vectors are taken in pairs");
#pragma GCC unroll 2
  for (int k = 0; k < VECTORS; k += 2) {
    const __m256i x0 = four_activations(x + 4 * k), x1 = four_activations(x + 4 * k + 4);
    Ints& sum = acc[k / 2 % CHAINS];
    if constexpr (WIDTH == 8) {
      sum.low = dot_wide(dot_wide(sum.low, c[k].low, x0), c[k + 1].low, x1);
      sum.high = dot_wide(dot_wide(sum.high, c[k].high, x0), c[k + 1].high, x1);
    } else {
      sum.low = dot2_narrow(sum.low, c[k].low, c[k + 1].low, x0, x1);
      sum.high = dot2_narrow(sum.high, c[k].high, c[k + 1].high, x0, x1);
    }
  }
}

}  // namespace
}  // namespace penjing

#include "kernels/kernels.inl"

namespace penjing {
const Kernels kAvx2Kernels = kernel_table("avx2");
}
