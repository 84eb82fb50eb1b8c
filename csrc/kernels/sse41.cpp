// SSE4.1, for x86-64 without AVX2 (Atoms and Celerons up to 2022, everything before 2013): a vector of 16 lanes is four
// registers. There is neither a fused multiply-add nor a conversion of halves: both are made of what there is, to the
// same bits. Meanings: scalar.cpp.
#include <smmintrin.h>

#include <cstring>

#include "kernels/tables.h"

namespace penjing {
namespace {

constexpr int kTilePanels = 1, kTileColumns = 2, kTileVectors = 2;  // linear_codes
constexpr int kDirectColumns = 2, kDirectRuns = 1;                  // linear_direct
constexpr bool kUnrollGroups = false;
constexpr bool kColumnPairs = false;
constexpr bool kEndByColumn = false;
constexpr int kFloatPanels = 1, kFloatColumns = 2;                  // linear_float
constexpr int kQueryTile = 2, kScoreBlocks = 1, kValueVectors = 1;  // attend

constexpr int kQuarters = 4;
struct Floats {
  __m128 v[kQuarters];
};
struct Ints {
  __m128i v[kQuarters];
};
struct Codes {
  __m128i v[kQuarters];
};

template <class Vector, class Function>
inline Vector each(Function quarter) {
  return {{quarter(0), quarter(1), quarter(2), quarter(3)}};
}
inline const uint8_t* bytes(const void* p) { return static_cast<const uint8_t*>(p); }
inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline void store128(void* p, __m128i x) { _mm_storeu_si128(static_cast<__m128i*>(p), x); }

// --- floats
inline Floats all(float x) {
  return each<Floats>([=](int) { return _mm_set1_ps(x); });
}
inline Floats load(const void* p) {
  return each<Floats>([=](int i) { return _mm_castsi128_ps(load128(bytes(p) + 16 * i)); });
}
inline Floats load_first(const void* p, int n) {
  float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof lanes[0]);
  return load(lanes);
}
inline void store(float* p, Floats x) {
  for (int i = 0; i < kQuarters; ++i) _mm_storeu_ps(p + 4 * i, x.v[i]);
}
inline void store_first(float* p, Floats x, int n) {
  float lanes[kLanes];
  store(lanes, x);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof lanes[0]);
}
inline __m128i four_u16(const uint8_t* p) {
  return _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

// The bits of a half, 13 places up, are a float that is 2^112 too small. NaNs become quiet.
inline __m128 half_to_float(__m128i half) {
  const __m128i magnitude = _mm_and_si128(half, _mm_set1_epi32(0x7fff));
  const __m128i sign = _mm_slli_epi32(_mm_xor_si128(half, magnitude), 16);
  const __m128 number = _mm_mul_ps(_mm_castsi128_ps(_mm_slli_epi32(magnitude, 13)), _mm_set1_ps(0x1p112f));
  const __m128i special = _mm_and_si128(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7bff)), _mm_set1_epi32(0x7f800000));
  const __m128i quiet = _mm_and_si128(_mm_cmpgt_epi32(magnitude, _mm_set1_epi32(0x7c00)), _mm_set1_epi32(0x400000));
  return _mm_castsi128_ps(_mm_or_si128(_mm_or_si128(_mm_castps_si128(number), sign), _mm_or_si128(special, quiet)));
}
// As float_to_half in scalar.cpp, all of its cases at once.
inline __m128i float_to_half(__m128 x) {
  const __m128i bits = _mm_castps_si128(x), magnitude = _mm_and_si128(bits, _mm_set1_epi32(0x7fffffff));
  const __m128i sign = _mm_srli_epi32(_mm_xor_si128(bits, magnitude), 16);
  const __m128i lowest = _mm_and_si128(_mm_srli_epi32(magnitude, 13), _mm_set1_epi32(1));
  const __m128i rounded = _mm_add_epi32(_mm_add_epi32(magnitude, _mm_set1_epi32(0xfff)), lowest);
  const __m128i number = _mm_srli_epi32(_mm_sub_epi32(rounded, _mm_set1_epi32(112 << 23)), 13);
  const __m128 shifted = _mm_add_ps(_mm_castsi128_ps(magnitude), _mm_set1_ps(0.5f));
  const __m128i small = _mm_sub_epi32(_mm_castps_si128(shifted), _mm_set1_epi32(0x3f000000));
  const __m128i payload = _mm_and_si128(_mm_srli_epi32(magnitude, 13), _mm_set1_epi32(0x1ff));
  const __m128i nan = _mm_or_si128(payload, _mm_set1_epi32(0x7e00));
  const auto below = [&](int32_t bound, __m128i yes, __m128i no) {
    return _mm_blendv_epi8(no, yes, _mm_cmplt_epi32(magnitude, _mm_set1_epi32(bound)));
  };
  const __m128i infinite = below(0x7f800001, _mm_set1_epi32(0x7c00), nan);
  return _mm_or_si128(sign, below(0x38800000, small, below(0x477ff000, number, infinite)));
}

inline Floats load_f16(const void* p) {
  return each<Floats>([=](int i) { return half_to_float(four_u16(bytes(p) + 8 * i)); });
}
inline Floats load_f16_first(const void* p, int n) {
  uint16_t lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof lanes[0]);
  return load_f16(lanes);
}
inline Floats load_bf16(const void* p) {
  return each<Floats>([=](int i) { return _mm_castsi128_ps(_mm_slli_epi32(four_u16(bytes(p) + 8 * i), 16)); });
}
inline void store_f16(uint16_t* p, Floats x) {
  store128(p, _mm_packus_epi32(float_to_half(x.v[0]), float_to_half(x.v[1])));
  store128(p + 8, _mm_packus_epi32(float_to_half(x.v[2]), float_to_half(x.v[3])));
}
inline Floats add(Floats a, Floats b) {
  return each<Floats>([&](int i) { return _mm_add_ps(a.v[i], b.v[i]); });
}
inline Floats sub(Floats a, Floats b) {
  return each<Floats>([&](int i) { return _mm_sub_ps(a.v[i], b.v[i]); });
}
inline Floats mul(Floats a, Floats b) {
  return each<Floats>([&](int i) { return _mm_mul_ps(a.v[i], b.v[i]); });
}
inline Floats div(Floats a, Floats b) {
  return each<Floats>([&](int i) { return _mm_div_ps(a.v[i], b.v[i]); });
}

// a b + c of two lanes with one rounding: the product of two floats is exact as a double; the sum is rounded to odd
// (where it is not exact, to the neighbour whose last bit is 1), after which rounding to float is as if there had been
// no rounding before (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
inline __m128d fma_odd(__m128d a, __m128d b, __m128d c) {
  const __m128d product = _mm_mul_pd(a, b), sum = _mm_add_pd(product, c);
  const __m128d back = _mm_sub_pd(sum, product);
  const __m128d error = _mm_add_pd(_mm_sub_pd(product, _mm_sub_pd(sum, back)), _mm_sub_pd(c, back));
  const __m128d zero = _mm_setzero_pd();
  const __m128i inexact = _mm_castpd_si128(_mm_or_pd(_mm_cmplt_pd(error, zero), _mm_cmpgt_pd(error, zero)));  // no NaN
  const __m128i bits = _mm_castpd_si128(sum), one = _mm_set1_epi64x(1);
  const __m128i even = _mm_andnot_si128(bits, one);  // 1 where the last bit is 0
  // towards the error: away from zero is one more, towards zero one less
  const __m128i opposed = _mm_castpd_si128(_mm_xor_pd(error, sum));
  const __m128i inwards = _mm_shuffle_epi32(_mm_srai_epi32(opposed, 31), _MM_SHUFFLE(3, 3, 1, 1));
  const __m128i step = _mm_sub_epi64(_mm_xor_si128(even, inwards), inwards);  // even, or -even
  return _mm_castsi128_pd(_mm_add_epi64(bits, _mm_and_si128(step, inexact)));
}
inline __m128 fma_quarter(__m128 a, __m128 b, __m128 c) {
  const auto upper = [](__m128 x) { return _mm_cvtps_pd(_mm_movehl_ps(x, x)); };
  const __m128 low = _mm_cvtpd_ps(fma_odd(_mm_cvtps_pd(a), _mm_cvtps_pd(b), _mm_cvtps_pd(c)));
  return _mm_movelh_ps(low, _mm_cvtpd_ps(fma_odd(upper(a), upper(b), upper(c))));
}
inline Floats fma(Floats a, Floats b, Floats c) {
  return each<Floats>([&](int i) { return fma_quarter(a.v[i], b.v[i], c.v[i]); });
}
inline Floats negate(Floats a) {
  return each<Floats>([&](int i) { return _mm_xor_ps(a.v[i], _mm_set1_ps(-0.0f)); });
}
// max and min give the second of two when one is NaN
inline Floats at_least(Floats bound, Floats x) {
  return each<Floats>([&](int i) { return _mm_max_ps(bound.v[i], x.v[i]); });
}
inline Floats at_most(Floats bound, Floats x) {
  return each<Floats>([&](int i) { return _mm_min_ps(bound.v[i], x.v[i]); });
}
inline Floats where_negative(Floats x, Floats yes, Floats no) {
  return each<Floats>([&](int i) { return _mm_blendv_ps(no.v[i], yes.v[i], _mm_cmplt_ps(x.v[i], _mm_setzero_ps())); });
}
inline Floats lanes_between(int first, int last, Floats x, Floats other) {
  if (first <= 0 && last >= kLanes - 1) return x;
  return each<Floats>([&](int i) {
    const __m128i lane = _mm_add_epi32(_mm_setr_epi32(0, 1, 2, 3), _mm_set1_epi32(4 * i));
    const __m128i outside =
        _mm_or_si128(_mm_cmplt_epi32(lane, _mm_set1_epi32(first)), _mm_cmpgt_epi32(lane, _mm_set1_epi32(last)));
    return _mm_blendv_ps(x.v[i], other.v[i], _mm_castsi128_ps(outside));
  });
}
inline float reduce_add(Floats x) {
  const __m128 four = _mm_add_ps(_mm_add_ps(x.v[0], x.v[2]), _mm_add_ps(x.v[1], x.v[3]));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float reduce_max(Floats x) {
  const __m128 four = _mm_max_ps(_mm_max_ps(x.v[0], x.v[2]), _mm_max_ps(x.v[1], x.v[3]));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline bool any_above(Floats x, float bound) { return reduce_max(x) > bound; }

// --- ints
inline void stay(Ints&) {}
inline Ints ints(int32_t x) {
  return each<Ints>([=](int) { return _mm_set1_epi32(x); });
}
inline Ints load_u8(const uint8_t* p) {
  const __m128i lanes = load128(p);
  return {{_mm_cvtepu8_epi32(lanes), _mm_cvtepu8_epi32(_mm_srli_si128(lanes, 4)),
           _mm_cvtepu8_epi32(_mm_srli_si128(lanes, 8)), _mm_cvtepu8_epi32(_mm_srli_si128(lanes, 12))}};
}
inline Ints add(Ints a, Ints b) {
  return each<Ints>([&](int i) { return _mm_add_epi32(a.v[i], b.v[i]); });
}
inline Ints sub(Ints a, Ints b) {
  return each<Ints>([&](int i) { return _mm_sub_epi32(a.v[i], b.v[i]); });
}
inline Ints mul(Ints a, Ints b) {
  return each<Ints>([&](int i) { return _mm_mullo_epi32(a.v[i], b.v[i]); });
}
inline Ints bit_and(Ints a, Ints b) {
  return each<Ints>([&](int i) { return _mm_and_si128(a.v[i], b.v[i]); });
}
inline Ints max(Ints a, Ints b) {
  return each<Ints>([&](int i) { return _mm_max_epi32(a.v[i], b.v[i]); });
}
template <int N>
inline Ints shift_left(Ints a) {
  return each<Ints>([&](int i) { return _mm_slli_epi32(a.v[i], N); });
}
inline Ints halve(Ints a) {
  return each<Ints>([&](int i) { return _mm_srai_epi32(a.v[i], 1); });
}
inline Ints bits_of(Floats a) {
  return each<Ints>([&](int i) { return _mm_castps_si128(a.v[i]); });
}
inline Floats floats_of_bits(Ints a) {
  return each<Floats>([&](int i) { return _mm_castsi128_ps(a.v[i]); });
}
inline Floats to_floats(Ints a) {
  return each<Floats>([&](int i) { return _mm_cvtepi32_ps(a.v[i]); });
}
inline void store_s8(int8_t* p, Ints a) {
  const auto low_byte = [&](int i) { return _mm_and_si128(a.v[i], _mm_set1_epi32(255)); };
  store128(p, _mm_packus_epi16(_mm_packus_epi32(low_byte(0), low_byte(1)), _mm_packus_epi32(low_byte(2), low_byte(3))));
}
inline int32_t reduce_add(Ints a) {
  const __m128i four = _mm_add_epi32(_mm_add_epi32(a.v[0], a.v[1]), _mm_add_epi32(a.v[2], a.v[3]));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
inline int32_t reduce_max(Ints a) {
  const __m128i four = _mm_max_epi32(_mm_max_epi32(a.v[0], a.v[1]), _mm_max_epi32(a.v[2], a.v[3]));
  const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}

// --- codes
inline Codes load_codes(const uint8_t* p) {
  return each<Codes>([=](int i) { return load128(p + 16 * i); });
}
inline void store_codes(uint8_t* p, Codes c) {
  for (int i = 0; i < kQuarters; ++i) store128(p + 16 * i, c.v[i]);
}
inline Codes same_codes(uint8_t code) {
  return each<Codes>([=](int) { return _mm_set1_epi8(static_cast<char>(code)); });
}
inline Codes load_book(const int8_t* book, int count) {
  int8_t entry[16] = {};
  std::memcpy(entry, book, static_cast<size_t>(count));
  return each<Codes>([&](int) { return _mm_xor_si128(load128(entry), _mm_set1_epi8(-128)); });
}
inline Codes look_up(Codes table, Codes c) {
  return each<Codes>([&](int i) { return _mm_shuffle_epi8(table.v[i], c.v[i]); });
}
// Less 128, as in avx2.inl.
inline Codes load_ternary(const uint8_t* p) {
  return each<Codes>([=](int i) { return _mm_xor_si128(load128(p + 16 * i), _mm_set1_epi8(-128)); });
}
inline Codes first_digit(Codes left) {
  return each<Codes>([&](int i) {
    const __m128i second = _mm_cmpgt_epi8(left.v[i], _mm_set1_epi8(85 - 128));
    const __m128i third = _mm_cmpgt_epi8(left.v[i], _mm_set1_epi8(170 - 128));
    return _mm_abs_epi8(_mm_add_epi8(second, third));
  });
}
inline Codes times_three(Codes left) {
  return each<Codes>([&](int i) { return _mm_add_epi8(left.v[i], _mm_add_epi8(left.v[i], left.v[i])); });
}
// A field of `MASK`, moved right by N bits (left by -N): 16-bit shifts, what crosses between bytes is masked.
template <int N, int MASK>
inline Codes field(Codes c) {
  return each<Codes>([&](int i) {
    const __m128i moved = N < 0 ? _mm_slli_epi16(c.v[i], N < 0 ? -N : 0) : _mm_srli_epi16(c.v[i], N < 0 ? 0 : N);
    return _mm_and_si128(moved, _mm_set1_epi8(MASK));
  });
}
inline Codes codes_or(Codes a, Codes b) {
  return each<Codes>([&](int i) { return _mm_or_si128(a.v[i], b.v[i]); });
}
inline void unpack4(const uint8_t* p, Codes* c) {
  for (int k = 0; k < 2; ++k) {
    const Codes both = load_codes(p + 64 * k);
    c[2 * k] = field<0, 15>(both);
    c[2 * k + 1] = field<4, 15>(both);
  }
}
inline void unpack2(const uint8_t* p, Codes* c) {
  const Codes four = load_codes(p);
  c[0] = field<0, 3>(four);
  c[1] = field<2, 3>(four);
  c[2] = field<4, 3>(four);
  c[3] = field<6, 3>(four);
}
template <int WORTH>
inline void add_plane2(const uint8_t* p, Codes* c) {
  static_assert(WORTH == 16, "the shifts put a 2-bit code four bits up");
  const Codes four = load_codes(p);
  c[0] = codes_or(c[0], field<-4, 0x30>(four));
  c[1] = codes_or(c[1], field<-2, 0x30>(four));
  c[2] = codes_or(c[2], field<0, 0x30>(four));
  c[3] = codes_or(c[3], field<2, 0x30>(four));
}
template <int WORTH>
inline void add_plane1(const uint8_t* p, Codes* c) {
  const __m128i byte = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m128i bit = _mm_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  for (int k = 0; k < 4; ++k) {
    c[k] = codes_or(c[k], each<Codes>([&](int i) {  // 16 bits, each to a byte
                      uint16_t bits;
                      std::memcpy(&bits, p + 8 * k + 2 * i, sizeof bits);
                      const __m128i spread = _mm_shuffle_epi8(_mm_cvtsi32_si128(bits), byte);
                      return _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(spread, bit), bit), _mm_set1_epi8(WORTH));
                    }));
  }
}

// 8-bit codes less 128 are signed; up to 6 bits they stay as they are. See avx2.cpp for why nothing overflows.
constexpr int code_offset(int width) { return width == 8 ? 128 : 0; }
constexpr int dot_width(int bits) { return bits == 8 ? 8 : 6; }

inline __m128i add_pairs(__m128i acc, __m128i pairs) {
  return _mm_add_epi32(acc, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
}
inline __m128i dot2_narrow(__m128i acc, __m128i c0, __m128i c1, __m128i x0, __m128i x1) {
  return add_pairs(acc, _mm_add_epi16(_mm_maddubs_epi16(c0, x0), _mm_maddubs_epi16(c1, x1)));
}
inline __m128i dot_wide(__m128i acc, __m128i c, __m128i x) {
  const __m128i code = _mm_xor_si128(c, _mm_set1_epi8(-128));
  return add_pairs(acc, _mm_maddubs_epi16(_mm_abs_epi8(code), _mm_sign_epi8(x, code)));
}
inline __m128i four_activations(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm_set1_epi32(four);
}

template <int WIDTH, int VECTORS, int CHAINS>
inline void dot(Ints* acc, const Codes* c, const int8_t* x) {
  static_assert(VECTORS % 2 == 0, "vectors are taken in pairs");
#pragma GCC unroll 2
  for (int k = 0; k < VECTORS; k += 2) {
    const __m128i x0 = four_activations(x + 4 * k), x1 = four_activations(x + 4 * k + 4);
#pragma GCC unroll 4
    for (int i = 0; i < kQuarters; ++i) {
      __m128i& sum = acc[k / 2 % CHAINS].v[i];
      if constexpr (WIDTH == 8) {
        sum = dot_wide(dot_wide(sum, c[k].v[i], x0), c[k + 1].v[i], x1);
      } else {
        sum = dot2_narrow(sum, c[k].v[i], c[k + 1].v[i], x0, x1);
      }
    }
  }
}

}  // namespace
}  // namespace penjing

#include "kernels/kernels.inl"

namespace penjing {
const Kernels kSse41Kernels = kernel_table("sse41");
}
