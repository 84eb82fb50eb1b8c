// The oracle: 16 lanes as plain loops. Every other ISA file offers the same names with the same meaning and must
// give the same bits.
#include <cstring>

#include "kernels/tables.h"

namespace penjing {
namespace {

constexpr int kTilePanels = 2, kTileColumns = 3, kTileVectors = 2;  // linear_codes
constexpr int kDirectColumns = 2, kDirectRuns = 1;                  // linear_direct
constexpr bool kUnrollGroups = false;
constexpr bool kColumnPairs = false;
constexpr bool kEndByColumn = false;
constexpr int kFloatPanels = 2, kFloatColumns = 2;                  // linear_float
constexpr int kQueryTile = 2, kScoreBlocks = 2, kValueVectors = 2;  // attend

struct Floats {
  float v[kLanes];
};
struct Ints {
  int32_t v[kLanes];
};
struct Codes {
  uint8_t v[4 * kLanes];
};

template <class Vector, class Function>
inline Vector each(Function lane_value) {
  Vector out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = lane_value(i);
  return out;
}

inline int32_t wrapped(uint32_t bits) { return static_cast<int32_t>(bits); }
inline uint32_t unsign(int32_t value) { return static_cast<uint32_t>(value); }

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, or a NaN made quiet
    return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 | (magnitude > 0x7c00u ? 0x400000u : 0u));
  }
  if (magnitude < 0x400u) {  // zero or subnormal: a multiple of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  return float_of(sign | ((magnitude << 13) + (112u << 23)));
}

inline uint16_t float_to_half(float x) {
  const uint32_t bits = bits_of(x);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x1ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 rounds to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 rounds to a multiple of 2^-24, to nearest even
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);  // to nearest even
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

// --- floats
inline Floats all(float x) {
  return each<Floats>([=](int) { return x; });
}
inline Floats load(const void* p) {
  Floats out;
  std::memcpy(out.v, p, sizeof out.v);
  return out;
}
// The first n lanes from memory, 0 in the others.
inline Floats load_first(const void* p, int n) {
  Floats out = all(0.0f);
  std::memcpy(out.v, p, static_cast<size_t>(n) * sizeof(float));
  return out;
}
inline void store(float* p, Floats x) { std::memcpy(p, x.v, sizeof x.v); }
inline void store_first(float* p, Floats x, int n) { std::memcpy(p, x.v, static_cast<size_t>(n) * sizeof(float)); }
inline Floats load_f16(const void* p) {
  uint16_t half[kLanes];
  std::memcpy(half, p, sizeof half);
  return each<Floats>([&](int i) { return half_to_float(half[i]); });
}
inline Floats load_f16_first(const void* p, int n) {
  uint16_t half[kLanes] = {};
  std::memcpy(half, p, static_cast<size_t>(n) * sizeof half[0]);
  return load_f16(half);
}
inline Floats load_bf16(const void* p) {
  uint16_t upper[kLanes];
  std::memcpy(upper, p, sizeof upper);
  return each<Floats>([&](int i) { return float_of(static_cast<uint32_t>(upper[i]) << 16); });
}
inline void store_f16(uint16_t* p, Floats x) {
  for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(x.v[i]);
}
inline Floats add(Floats a, Floats b) {
  return each<Floats>([&](int i) { return a.v[i] + b.v[i]; });
}
inline Floats sub(Floats a, Floats b) {
  return each<Floats>([&](int i) { return a.v[i] - b.v[i]; });
}
inline Floats mul(Floats a, Floats b) {
  return each<Floats>([&](int i) { return a.v[i] * b.v[i]; });
}
inline Floats div(Floats a, Floats b) {
  return each<Floats>([&](int i) { return a.v[i] / b.v[i]; });
}
inline Floats fma(Floats a, Floats b, Floats c) {
  return each<Floats>([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
inline Floats negate(Floats a) {
  return each<Floats>([&](int i) { return -a.v[i]; });
}
// A NaN in x stays; the bound is a number.
inline Floats at_least(Floats bound, Floats x) {
  return each<Floats>([&](int i) { return bound.v[i] > x.v[i] ? bound.v[i] : x.v[i]; });
}
inline Floats at_most(Floats bound, Floats x) {
  return each<Floats>([&](int i) { return bound.v[i] < x.v[i] ? bound.v[i] : x.v[i]; });
}
inline Floats where_negative(Floats x, Floats yes, Floats no) {
  return each<Floats>([&](int i) { return x.v[i] < 0.0f ? yes.v[i] : no.v[i]; });
}
// Lanes first..last of x (both may lie outside 0..15), `other` elsewhere.
inline Floats lanes_between(int first, int last, Floats x, Floats other) {
  return each<Floats>([&](int i) { return first <= i && i <= last ? x.v[i] : other.v[i]; });
}
// One tree for every ISA: lanes i and i + 8, then i + 4, i + 2, i + 1.
inline float reduce_add(Floats x) {
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) x.v[i] += x.v[i + half];
  }
  return x.v[0];
}
inline float reduce_max(Floats x) {
  for (int i = 1; i < kLanes; ++i) x.v[0] = x.v[0] > x.v[i] ? x.v[0] : x.v[i];
  return x.v[0];
}
inline bool any_above(Floats x, float bound) { return reduce_max(x) > bound; }

// --- ints: two's complement, wrapping
inline void stay(Ints&) {}
inline Ints ints(int32_t x) {
  return each<Ints>([=](int) { return x; });
}
inline Ints load_u8(const uint8_t* p) {
  return each<Ints>([=](int i) { return static_cast<int32_t>(p[i]); });
}
inline Ints add(Ints a, Ints b) {
  return each<Ints>([&](int i) { return wrapped(unsign(a.v[i]) + unsign(b.v[i])); });
}
inline Ints sub(Ints a, Ints b) {
  return each<Ints>([&](int i) { return wrapped(unsign(a.v[i]) - unsign(b.v[i])); });
}
inline Ints mul(Ints a, Ints b) {
  return each<Ints>([&](int i) { return wrapped(unsign(a.v[i]) * unsign(b.v[i])); });
}
inline Ints bit_and(Ints a, Ints b) {
  return each<Ints>([&](int i) { return a.v[i] & b.v[i]; });
}
inline Ints max(Ints a, Ints b) {
  return each<Ints>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
template <int N>
inline Ints shift_left(Ints a) {
  return each<Ints>([&](int i) { return wrapped(unsign(a.v[i]) << N); });
}
inline Ints halve(Ints a) {  // rounds down
  return each<Ints>([&](int i) { return a.v[i] >> 1; });
}
inline Ints bits_of(Floats a) {
  return each<Ints>([&](int i) { return wrapped(bits_of(a.v[i])); });
}
inline Floats floats_of_bits(Ints a) {
  return each<Floats>([&](int i) { return float_of(unsign(a.v[i])); });
}
inline Floats to_floats(Ints a) {
  return each<Floats>([&](int i) { return static_cast<float>(a.v[i]); });
}
inline void store_s8(int8_t* p, Ints a) {  // the low byte of each lane
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(static_cast<uint8_t>(unsign(a.v[i]) & 255u));
}
inline int32_t reduce_add(Ints a) {
  uint32_t sum = 0;
  for (int32_t x : a.v) sum += unsign(x);
  return wrapped(sum);
}
inline int32_t reduce_max(Ints a) {
  int32_t largest = a.v[0];
  for (int32_t x : a.v) largest = x > largest ? x : largest;
  return largest;
}

// --- codes: 16 inputs of a panel are 4 vectors of 64 codes, code 4 * lane + input
inline Codes load_codes(const uint8_t* p) {
  Codes out;
  std::memcpy(out.v, p, sizeof out.v);
  return out;
}
inline void store_codes(uint8_t* p, Codes c) { std::memcpy(p, c.v, sizeof c.v); }
inline Codes same_codes(uint8_t code) {
  Codes out;
  std::memset(out.v, code, sizeof out.v);
  return out;
}
// Entry + 128 for each of the `count` codes, and what codes stand for in such a table.
inline Codes load_book(const int8_t* book, int count) {
  Codes out = same_codes(0);
  for (int i = 0; i < count; ++i) out.v[i] = static_cast<uint8_t>(book[i] + 128);
  return out;
}
inline Codes look_up(const Codes& table, Codes c) {
  for (uint8_t& code : c.v) code = table.v[code];
  return c;
}
// Bytes of ternary digits, in whatever form the next two want them: the first digit, and what follows it.
inline Codes load_ternary(const uint8_t* p) { return load_codes(p); }
inline Codes first_digit(Codes left) {
  for (uint8_t& byte : left.v) byte = static_cast<uint8_t>(3 * byte >> 8);
  return left;
}
inline Codes times_three(Codes left) {
  for (uint8_t& byte : left.v) byte = static_cast<uint8_t>(3 * byte & 255);
  return left;
}
inline void unpack4(const uint8_t* p, Codes* c) {
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < 64; ++i) c[k].v[i] = static_cast<uint8_t>(p[k / 2 * 64 + i] >> (k % 2 * 4) & 15);
  }
}
inline void unpack2(const uint8_t* p, Codes* c) {
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < 64; ++i) c[k].v[i] = static_cast<uint8_t>(p[i] >> (2 * k) & 3);
  }
}
// c += WORTH * (2-bit plane)
template <int WORTH>
inline void add_plane2(const uint8_t* p, Codes* c) {
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < 64; ++i) c[k].v[i] = static_cast<uint8_t>(c[k].v[i] + WORTH * (p[i] >> (2 * k) & 3));
  }
}
// c += WORTH * (1-bit plane)
template <int WORTH>
inline void add_plane1(const uint8_t* p, Codes* c) {
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < 64; ++i)
      c[k].v[i] = static_cast<uint8_t>(c[k].v[i] + WORTH * (p[8 * k + i / 8] >> (i % 8) & 1));
  }
}

// dot may work on codes less an offset; the sum's initial value makes it good.
constexpr int code_offset(int) { return 0; }
// Widths that dot treats alike share one tile kernel: the width that stands for them.
constexpr int dot_width(int) { return 4; }

// acc[k % CHAINS][lane] += sum of 4 codes times 4 activations, for VECTORS vectors of 4 inputs. Exact.
template <int WIDTH, int VECTORS, int CHAINS>
inline void dot(Ints* acc, const Codes* c, const int8_t* x) {
  for (int k = 0; k < VECTORS; ++k) {
    for (int i = 0; i < kLanes; ++i) {
      int32_t sum = 0;
      for (int j = 0; j < 4; ++j) sum += c[k].v[4 * i + j] * x[4 * k + j];
      acc[k % CHAINS].v[i] = wrapped(unsign(acc[k % CHAINS].v[i]) + unsign(sum));
    }
  }
}

}  // namespace
}  // namespace penjing

#include "kernels/kernels.inl"

namespace penjing {
const Kernels kScalarKernels = kernel_table("scalar");
}
