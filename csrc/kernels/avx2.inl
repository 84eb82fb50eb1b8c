// 256-bit registers, a vector of 16 lanes is two of them: all that avx2.cpp and avxvnni.cpp share. Meanings: scalar.cpp.
#include <immintrin.h>

#include <cstring>

#include "kernels/tables.h"

namespace penjing {
namespace {

constexpr int kFloatPanels = 2, kFloatColumns = 2;                  // linear_float
constexpr int kQueryTile = 2, kScoreBlocks = 2, kValueVectors = 2;  // attend

struct Floats {
  __m256 low, high;
};
struct Ints {
  __m256i low, high;
};
struct Codes {
  __m256i low, high;
};

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

// --- floats
inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const void* p) {
  const float* x = static_cast<const float*>(p);
  return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)};
}
inline Floats load_first(const void* p, int n) {
  float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof lanes[0]);
  return load(lanes);
}
inline void store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
inline void store_first(float* p, Floats x, int n) {
  float lanes[kLanes];
  store(lanes, x);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof lanes[0]);
}
inline Floats load_f16(const void* p) {
  const uint8_t* half = static_cast<const uint8_t*>(p);
  return {_mm256_cvtph_ps(load128(half)), _mm256_cvtph_ps(load128(half + 16))};
}
inline Floats load_f16_first(const void* p, int n) {
  uint16_t lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof lanes[0]);
  return load_f16(lanes);
}
inline Floats load_bf16(const void* p) {
  const uint8_t* upper = static_cast<const uint8_t*>(p);
  const __m256i low = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(upper)), 16);
  const __m256i high = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(upper + 16)), 16);
  return {_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)};
}
inline void store_f16(uint16_t* p, Floats x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.low, kNearest));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.high, kNearest));
}
inline Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats sub(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats div(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Floats fma(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats negate(Floats a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(a.low, sign), _mm256_xor_ps(a.high, sign)};
}
// max and min give the second of two when one is NaN
inline Floats at_least(Floats bound, Floats x) {
  return {_mm256_max_ps(bound.low, x.low), _mm256_max_ps(bound.high, x.high)};
}
inline Floats at_most(Floats bound, Floats x) {
  return {_mm256_min_ps(bound.low, x.low), _mm256_min_ps(bound.high, x.high)};
}
inline bool any_above(Floats x, float bound) {
  const __m256 b = _mm256_set1_ps(bound);
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.low, b, _CMP_GT_OQ), _mm256_cmp_ps(x.high, b, _CMP_GT_OQ)));
}
inline Floats where_negative(Floats x, Floats yes, Floats no) {
  const __m256 zero = _mm256_setzero_ps();
  return {_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(x.low, zero, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(x.high, zero, _CMP_LT_OQ))};
}
inline __m256 blend_between(__m256i lane, int first, int last, __m256 x, __m256 other) {
  const __m256i outside = _mm256_or_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                          _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(last)));
  return _mm256_blendv_ps(x, other, _mm256_castsi256_ps(outside));
}
inline Floats lanes_between(int first, int last, Floats x, Floats other) {
  if (first <= 0 && last >= kLanes - 1) return x;
  return {blend_between(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), first, last, x.low, other.low),
          blend_between(_mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15), first, last, x.high, other.high)};
}
inline float reduce_add(Floats x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(Floats x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// --- ints
inline void stay(Ints&) {}
inline Ints ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints load_u8(const uint8_t* p) {
  const __m128i bytes = load128(p);
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes))};
}
inline Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline Ints sub(Ints a, Ints b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
inline Ints mul(Ints a, Ints b) { return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)}; }
inline Ints bit_and(Ints a, Ints b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
inline Ints max(Ints a, Ints b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
template <int N>
inline Ints shift_left(Ints a) {
  return {_mm256_slli_epi32(a.low, N), _mm256_slli_epi32(a.high, N)};
}
inline Ints halve(Ints a) { return {_mm256_srai_epi32(a.low, 1), _mm256_srai_epi32(a.high, 1)}; }
inline Ints bits_of(Floats a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
inline Floats floats_of_bits(Ints a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
inline Floats to_floats(Ints a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline void store_s8(int8_t* p, Ints a) {
  const __m256i low_byte = _mm256_set1_epi32(255);
  const __m256i words = _mm256_packus_epi32(_mm256_and_si256(a.low, low_byte), _mm256_and_si256(a.high, low_byte));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);  // packing works on each half by itself
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}
inline int32_t reduce_add(Ints a) {
  const __m256i eight = _mm256_add_epi32(a.low, a.high);
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
inline int32_t reduce_max(Ints a) {
  const __m256i eight = _mm256_max_epi32(a.low, a.high);
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

// --- codes
inline Codes load_codes(const uint8_t* p) { return {load256(p), load256(p + 32)}; }
inline void store_codes(uint8_t* p, Codes c) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), c.low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), c.high);
}
inline Codes same_codes(uint8_t code) {
  const __m256i same = _mm256_set1_epi8(static_cast<char>(code));
  return {same, same};
}
inline Codes load_book(const int8_t* book, int count) {
  int8_t entry[16] = {};
  std::memcpy(entry, book, static_cast<size_t>(count));
  const __m256i table = _mm256_broadcastsi128_si256(_mm_xor_si128(load128(entry), _mm_set1_epi8(-128)));
  return {table, table};
}
inline Codes look_up(Codes table, Codes c) {
  return {_mm256_shuffle_epi8(table.low, c.low), _mm256_shuffle_epi8(table.high, c.high)};
}
// Comparisons are signed, so bytes of ternary digits are held less 128; three times that less 256 is the same again.
inline Codes load_ternary(const uint8_t* p) {
  const __m256i top = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(load256(p), top), _mm256_xor_si256(load256(p + 32), top)};
}
inline __m256i first_digit(__m256i left) {  // 3 x >= 256, and 3 x >= 512
  const __m256i second = _mm256_cmpgt_epi8(left, _mm256_set1_epi8(85 - 128));
  const __m256i third = _mm256_cmpgt_epi8(left, _mm256_set1_epi8(170 - 128));
  return _mm256_abs_epi8(_mm256_add_epi8(second, third));
}
inline Codes first_digit(Codes left) { return {first_digit(left.low), first_digit(left.high)}; }
inline __m256i times_three(__m256i left) { return _mm256_add_epi8(left, _mm256_add_epi8(left, left)); }
inline Codes times_three(Codes left) { return {times_three(left.low), times_three(left.high)}; }
inline Codes codes_and(Codes c, __m256i mask) {
  return {_mm256_and_si256(c.low, mask), _mm256_and_si256(c.high, mask)};
}
inline Codes codes_or(Codes a, Codes b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
template <int N>
inline Codes right_16(Codes c) {  // 16-bit shift: bits cross between bytes, a mask must follow
  return {_mm256_srli_epi16(c.low, N), _mm256_srli_epi16(c.high, N)};
}
template <int N>
inline Codes left_16(Codes c) {
  return {_mm256_slli_epi16(c.low, N), _mm256_slli_epi16(c.high, N)};
}
inline void unpack4(const uint8_t* p, Codes* c) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int k = 0; k < 2; ++k) {
    const Codes both = load_codes(p + 64 * k);
    c[2 * k] = codes_and(both, low);
    c[2 * k + 1] = codes_and(right_16<4>(both), low);
  }
}
inline void unpack2(const uint8_t* p, Codes* c) {
  const __m256i low = _mm256_set1_epi8(3);
  const Codes four = load_codes(p);
  c[0] = codes_and(four, low);
  c[1] = codes_and(right_16<2>(four), low);
  c[2] = codes_and(right_16<4>(four), low);
  c[3] = codes_and(right_16<6>(four), low);
}
template <int WORTH>
inline void add_plane2(const uint8_t* p, Codes* c) {
  static_assert(WORTH == 16, "the shifts put a 2-bit code four bits up");
  const __m256i mask = _mm256_set1_epi8(0x30);
  const Codes four = load_codes(p);
  c[0] = codes_or(c[0], codes_and(left_16<4>(four), mask));
  c[1] = codes_or(c[1], codes_and(left_16<2>(four), mask));
  c[2] = codes_or(c[2], codes_and(four, mask));
  c[3] = codes_or(c[3], codes_and(right_16<2>(four), mask));
}
// 32 bits to 32 bytes, each WORTH or 0.
template <int WORTH>
inline __m256i spread_bits(const uint8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof bits);
  const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte);
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), _mm256_set1_epi8(WORTH));
}
template <int WORTH>
inline void add_plane1(const uint8_t* p, Codes* c) {
  for (int k = 0; k < 4; ++k) c[k] = codes_or(c[k], {spread_bits<WORTH>(p + 8 * k), spread_bits<WORTH>(p + 8 * k + 4)});
}

inline __m256i four_activations(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

}  // namespace
}  // namespace penjing
