// AArch64 with the dot product: Cortex-A55/A76 and later, Apple M1.
#include "kernels/neon.inl"

namespace penjing {
namespace {

constexpr int kTilePanels = 1, kTileColumns = 4, kTileVectors = 1, kDirectColumns = 2;  // linear_codes
constexpr bool kColumnPairs = false;

// 8-bit codes less 128 are signed; up to 6 bits they already are.
constexpr int code_offset(int width) { return width == 8 ? 128 : 0; }
constexpr int dot_width(int bits) { return bits == 8 ? 8 : 6; }

template <int WIDTH, int VECTORS, int CHAINS>
inline void dot(Ints* acc, const Codes* c, const int8_t* x) {
#pragma GCC unroll 4
  for (int k = 0; k < VECTORS; ++k) {
    int32_t four;
    std::memcpy(&four, x + 4 * k, sizeof four);
    const int8x16_t activations = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 4
    for (int i = 0; i < kQuarters; ++i) {
      const uint8x16_t code = WIDTH == 8 ? veorq_u8(c[k].v[i], vdupq_n_u8(128)) : c[k].v[i];
      int32x4_t& sum = acc[k % CHAINS].v[i];
      sum = vdotq_s32(sum, vreinterpretq_s8_u8(code), activations);
    }
  }
}

}  // namespace
}  // namespace penjing

#include "kernels/kernels.inl"

namespace penjing {
const Kernels kNeonKernels = kernel_table("neon");
}
