// Lanes of AVX-512 with VNNI: a vector of 16 lanes is one register, dot is one instruction. Meanings: scalar.cpp.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own header: _mm512_undefined_ps() is meant to be undefined (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstring>

#include "kernels/tables.h"

namespace penjing {
namespace {

constexpr int kTilePanels = 2, kTileColumns = 5, kTileVectors = 1;  // linear_codes
constexpr bool kEndByColumn = true;
constexpr int kDirectColumns = 8, kDirectRuns = 4;  // linear_direct
constexpr bool kUnrollGroups = true;
constexpr bool kColumnPairs = false;
constexpr int kFloatPanels = 4, kFloatColumns = 4;                  // linear_float
constexpr int kQueryTile = 4, kScoreBlocks = 4, kValueVectors = 4;  // attend

using Floats = __m512;
using Ints = __m512i;
using Codes = __m512i;

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

// --- floats
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats load(const void* p) { return _mm512_loadu_ps(p); }
inline Floats load_first(const void* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline void store_first(float* p, Floats x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
inline Floats load_f16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline Floats load_f16_first(const void* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
inline Floats load_bf16(const void* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store_f16(uint16_t* p, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats negate(Floats a) { return _mm512_xor_ps(a, all(-0.0f)); }
inline Floats at_least(Floats bound, Floats x) { return _mm512_max_ps(bound, x); }  // of two, one NaN: the second
inline Floats at_most(Floats bound, Floats x) { return _mm512_min_ps(bound, x); }
inline bool any_above(Floats x, float bound) { return _mm512_cmp_ps_mask(x, all(bound), _CMP_GT_OQ) != 0; }
inline Floats where_negative(Floats x, Floats yes, Floats no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), no, yes);
}
inline Floats lanes_between(int first, int last, Floats x, Floats other) {
  if (first <= 0 && last >= kLanes - 1) return x;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 after = _mm512_cmp_epi32_mask(lane, _mm512_set1_epi32(first), _MM_CMPINT_NLT);
  return _mm512_mask_blend_ps(_mm512_mask_cmp_epi32_mask(after, lane, _mm512_set1_epi32(last), _MM_CMPINT_LE), other,
                              x);
}
inline float reduce_add(Floats x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(Floats x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// --- ints
inline Ints ints(int32_t x) { return _mm512_set1_epi32(x); }
// Said at the end of a loop's body: GCC 12 moved sums to other registers and back each time, a fifth of all instructions.
inline void stay(Ints& x) { asm("" : "+v"(x)); }
inline Ints load_u8(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints mul(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
inline Ints bit_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
template <int N>
inline Ints shift_left(Ints a) {
  return _mm512_slli_epi32(a, N);
}
inline Ints halve(Ints a) { return _mm512_srai_epi32(a, 1); }
inline Ints bits_of(Floats a) { return _mm512_castps_si512(a); }
inline Floats floats_of_bits(Ints a) { return _mm512_castsi512_ps(a); }
inline Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline void store_s8(int8_t* p, Ints a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a)); }
inline int32_t reduce_add(Ints a) {  // _mm512_reduce_add_epi32 of GCC adds as signed ints, whose overflow is undefined
  const __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
inline int32_t reduce_max(Ints a) { return _mm512_reduce_max_epi32(a); }
// Four vectors at once: of each quarter one entry of each, then over the quarters.
template <class Op>
inline void reduce_four(const Ints (&a)[4], Op op, int32_t* out) {
  const Ints first = op(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
  const Ints second = op(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
  Ints all_four = op(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
  all_four = op(all_four, _mm512_shuffle_i64x2(all_four, all_four, 0x4e));
  all_four = op(all_four, _mm512_shuffle_i64x2(all_four, all_four, 0xb1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_castsi512_si128(all_four));
}
inline void reduce_max_each(const Ints (&a)[4], int32_t* out) {
  reduce_four(a, [](Ints x, Ints y) { return max(x, y); }, out);
}
inline void reduce_add_each(const Ints (&a)[4], int32_t* out) {
  reduce_four(a, [](Ints x, Ints y) { return add(x, y); }, out);
}

// --- codes
inline Codes load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_codes(uint8_t* p, Codes c) { _mm512_storeu_si512(p, c); }
inline Codes same_codes(uint8_t code) { return _mm512_set1_epi8(static_cast<char>(code)); }
inline Codes load_book(const int8_t* book, int count) {
  int8_t entry[16] = {};
  std::memcpy(entry, book, static_cast<size_t>(count));
  const __m128i table = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entry)), _mm_set1_epi8(-128));
  return _mm512_broadcast_i32x4(table);
}
inline Codes look_up(Codes table, Codes c) { return _mm512_shuffle_epi8(table, c); }
inline Codes load_ternary(const uint8_t* p) { return load_codes(p); }
inline Codes first_digit(Codes left) {  // 3 x >= 256, and 3 x >= 512
  const Codes one = _mm512_set1_epi8(1);
  const Codes digit = _mm512_maskz_mov_epi8(_mm512_cmpge_epu8_mask(left, _mm512_set1_epi8(86)), one);
  return _mm512_mask_add_epi8(digit, _mm512_cmpge_epu8_mask(left, _mm512_set1_epi8(-85)), digit, one);
}
inline Codes times_three(Codes left) { return _mm512_add_epi8(left, _mm512_add_epi8(left, left)); }
inline void unpack4(const uint8_t* p, Codes* c) {
  const __m512i low = _mm512_set1_epi8(15);
  for (int k = 0; k < 2; ++k) {
    const __m512i both = load_codes(p + 64 * k);
    c[2 * k] = _mm512_and_si512(both, low);
    c[2 * k + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
  }
}
inline void unpack2(const uint8_t* p, Codes* c) {
  const __m512i low = _mm512_set1_epi8(3);
  const __m512i four = load_codes(p);
  c[0] = _mm512_and_si512(four, low);
  c[1] = _mm512_and_si512(_mm512_srli_epi16(four, 2), low);
  c[2] = _mm512_and_si512(_mm512_srli_epi16(four, 4), low);
  c[3] = _mm512_and_si512(_mm512_srli_epi16(four, 6), low);
}
template <int WORTH>
inline void add_plane2(const uint8_t* p, Codes* c) {
  static_assert(WORTH == 16, "the shifts put a 2-bit code four bits up");
  const __m512i mask = _mm512_set1_epi8(0x30);
  const __m512i four = load_codes(p);
  c[0] = _mm512_or_si512(c[0], _mm512_and_si512(_mm512_slli_epi16(four, 4), mask));
  c[1] = _mm512_or_si512(c[1], _mm512_and_si512(_mm512_slli_epi16(four, 2), mask));
  c[2] = _mm512_or_si512(c[2], _mm512_and_si512(four, mask));
  c[3] = _mm512_or_si512(c[3], _mm512_and_si512(_mm512_srli_epi16(four, 2), mask));
}
template <int WORTH>
inline void add_plane1(const uint8_t* p, Codes* c) {
  const __m512i worth = _mm512_set1_epi8(WORTH);
  for (int k = 0; k < 4; ++k) {
    uint64_t bits;
    std::memcpy(&bits, p + 8 * k, sizeof bits);
    c[k] = _mm512_mask_add_epi8(c[k], bits, c[k], worth);
  }
}

constexpr int code_offset(int) { return 0; }
constexpr int dot_width(int) { return 4; }

template <int WIDTH, int VECTORS, int CHAINS>
inline void dot(Ints* acc, const Codes* c, const int8_t* x) {
#pragma GCC unroll 4
  for (int k = 0; k < VECTORS; ++k) {
    int32_t four;
    std::memcpy(&four, x + 4 * k, sizeof four);
    acc[k % CHAINS] = _mm512_dpbusd_epi32(acc[k % CHAINS], c[k], _mm512_set1_epi32(four));
  }
}

}  // namespace
}  // namespace penjing
