// AArch64 with products of matrices of bytes (i8mm): Cortex-A510/A710/X2 and later, Neoverse V1 and N2, Apple M2.
// usmmla multiplies 2 rows x 8 inputs by 8 inputs x 2 columns: 32 multiply-adds where the dot product does 16, and
// codes may be unsigned.
#include "kernels/neon.inl"

namespace penjing {
namespace {

constexpr int kTilePanels = 1, kTileColumns = 4;    // linear_codes
constexpr int kDirectColumns = 2, kDirectRuns = 1;  // linear_direct
constexpr bool kUnrollGroups = false;
constexpr int kTileVectors = 2;  // 8 inputs
constexpr bool kColumnPairs = true;
constexpr bool kEndByColumn = false;

constexpr int code_offset(int) { return 0; }
constexpr int dot_width(int) { return 4; }

template <int WIDTH, int VECTORS, int CHAINS>
inline void dot(Ints* acc, const Codes* c, const int8_t* x) {
  dot_by<VECTORS, CHAINS>(acc, c, x, [](int32x4_t sum, uint8x16_t codes, int8x16_t activations) {
    return vusdotq_s32(sum, codes, activations);
  });
}

// 16 rows x 2 columns as squares of 2 x 2, and back.
inline void to_squares(Ints& first, Ints& second) {
  for (int i = 0; i < kQuarters; ++i) {
    const int32x4_t a = first.v[i], b = second.v[i];
    first.v[i] = vzip1q_s32(a, b);
    second.v[i] = vzip2q_s32(a, b);
  }
}
inline void from_squares(Ints& first, Ints& second) {
  for (int i = 0; i < kQuarters; ++i) {
    const int32x4_t a = first.v[i], b = second.v[i];
    first.v[i] = vuzp1q_s32(a, b);
    second.v[i] = vuzp2q_s32(a, b);
  }
}

// 8 inputs of 16 rows (two vectors of codes) x 2 columns, in squares.
inline void dot_squares(Ints& first, Ints& second, const Codes* c, const int8_t* x, size_t ld_x) {
  const int8x16_t activations = vcombine_s8(vld1_s8(x), vld1_s8(x + ld_x));
#pragma GCC unroll 4
  for (int i = 0; i < kQuarters; ++i) {
    const uint32x4_t left = vreinterpretq_u32_u8(c[0].v[i]), right = vreinterpretq_u32_u8(c[1].v[i]);
    first.v[i] = vusmmlaq_s32(first.v[i], vreinterpretq_u8_u32(vzip1q_u32(left, right)), activations);
    second.v[i] = vusmmlaq_s32(second.v[i], vreinterpretq_u8_u32(vzip2q_u32(left, right)), activations);
  }
}

}  // namespace
}  // namespace penjing

#include "kernels/kernels.inl"

namespace penjing {
const Kernels kNeonI8mmKernels = kernel_table("neon_i8mm");
}
