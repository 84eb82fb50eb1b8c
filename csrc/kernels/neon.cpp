// AArch64 with the dot product: Cortex-A55/A76 and later, Apple M1.
#include "kernels/neon.inl"

namespace penjing {
namespace {

constexpr int kTilePanels = 1, kTileColumns = 4, kTileVectors = 1;  // linear_codes
constexpr int kDirectColumns = 2, kDirectRuns = 1;                  // linear_direct
constexpr bool kUnrollGroups = false;
constexpr bool kColumnPairs = false;
constexpr bool kEndByColumn = false;

// 8-bit codes less 128 are signed; up to 6 bits they already are.
constexpr int code_offset(int width) { return width == 8 ? 128 : 0; }
constexpr int dot_width(int bits) { return bits == 8 ? 8 : 6; }

template <int WIDTH, int VECTORS, int CHAINS>
inline void dot(Ints* acc, const Codes* c, const int8_t* x) {
  dot_by<VECTORS, CHAINS>(acc, c, x, [](int32x4_t sum, uint8x16_t codes, int8x16_t activations) {
    if (WIDTH == 8) codes = veorq_u8(codes, vdupq_n_u8(128));
    return vdotq_s32(sum, vreinterpretq_s8_u8(codes), activations);
  });
}

}  // namespace
}  // namespace penjing

#include "kernels/kernels.inl"

namespace penjing {
const Kernels kNeonKernels = kernel_table("neon");
}
