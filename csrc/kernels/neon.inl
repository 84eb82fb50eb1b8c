// AArch64: a vector of 16 lanes is four registers. Meanings: scalar.cpp.
#include <arm_neon.h>

#include <cstring>

#include "kernels/tables.h"

namespace penjing {
namespace {

constexpr int kFloatPanels = 2, kFloatColumns = 2;                  // linear_float
constexpr int kQueryTile = 2, kScoreBlocks = 2, kValueVectors = 2;  // attend

constexpr int kQuarters = 4;
struct Floats {
  float32x4_t v[kQuarters];
};
struct Ints {
  int32x4_t v[kQuarters];
};
struct Codes {
  uint8x16_t v[kQuarters];
};

template <class Vector, class Function>
inline Vector each(Function quarter) {
  return {{quarter(0), quarter(1), quarter(2), quarter(3)}};
}
inline const uint8_t* bytes(const void* p) { return static_cast<const uint8_t*>(p); }

// --- floats
inline Floats all(float x) {
  return each<Floats>([=](int) { return vdupq_n_f32(x); });
}
inline Floats load(const void* p) {
  return each<Floats>([=](int i) { return vreinterpretq_f32_u8(vld1q_u8(bytes(p) + 16 * i)); });
}
inline Floats load_first(const void* p, int n) {
  float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof lanes[0]);
  return load(lanes);
}
inline void store(float* p, Floats x) {
  for (int i = 0; i < kQuarters; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}
inline void store_first(float* p, Floats x, int n) {
  float lanes[kLanes];
  store(lanes, x);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof lanes[0]);
}
inline Floats load_f16(const void* p) {
  return each<Floats>([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(bytes(p) + 8 * i))); });
}
inline Floats load_f16_first(const void* p, int n) {
  uint16_t lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof lanes[0]);
  return load_f16(lanes);
}
inline Floats load_bf16(const void* p) {
  return each<Floats>(
      [=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(bytes(p) + 8 * i)), 16)); });
}
inline void store_f16(uint16_t* p, Floats x) {
  for (int i = 0; i < kQuarters; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
inline Floats add(Floats a, Floats b) {
  return each<Floats>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
inline Floats sub(Floats a, Floats b) {
  return each<Floats>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
inline Floats mul(Floats a, Floats b) {
  return each<Floats>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
inline Floats div(Floats a, Floats b) {
  return each<Floats>([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
}
inline Floats fma(Floats a, Floats b, Floats c) {
  return each<Floats>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
inline Floats negate(Floats a) {
  return each<Floats>([&](int i) { return vnegq_f32(a.v[i]); });
}
inline Floats at_least(Floats bound, Floats x) {
  return each<Floats>([&](int i) { return vbslq_f32(vcgtq_f32(bound.v[i], x.v[i]), bound.v[i], x.v[i]); });
}
inline Floats at_most(Floats bound, Floats x) {
  return each<Floats>([&](int i) { return vbslq_f32(vcltq_f32(bound.v[i], x.v[i]), bound.v[i], x.v[i]); });
}
inline Floats where_negative(Floats x, Floats yes, Floats no) {
  return each<Floats>([&](int i) { return vbslq_f32(vcltzq_f32(x.v[i]), yes.v[i], no.v[i]); });
}
inline Floats lanes_between(int first, int last, Floats x, Floats other) {
  if (first <= 0 && last >= kLanes - 1) return x;
  constexpr int32_t kFour[] = {0, 1, 2, 3};
  const int32x4_t four = vld1q_s32(kFour);
  return each<Floats>([&](int i) {
    const int32x4_t lane = vaddq_s32(four, vdupq_n_s32(4 * i));
    const uint32x4_t inside = vandq_u32(vcgeq_s32(lane, vdupq_n_s32(first)), vcleq_s32(lane, vdupq_n_s32(last)));
    return vbslq_f32(inside, x.v[i], other.v[i]);
  });
}
inline float reduce_add(Floats x) {
  const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float reduce_max(Floats x) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3])));
}
inline bool any_above(Floats x, float bound) { return reduce_max(x) > bound; }

// --- ints
inline void stay(Ints&) {}
inline Ints ints(int32_t x) {
  return each<Ints>([=](int) { return vdupq_n_s32(x); });
}
inline Ints load_u8(const uint8_t* p) {
  const uint8x16_t lanes = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(lanes)), high = vmovl_u8(vget_high_u8(lanes));
  return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
           vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
           vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
}
inline Ints add(Ints a, Ints b) {
  return each<Ints>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
}
inline Ints sub(Ints a, Ints b) {
  return each<Ints>([&](int i) { return vsubq_s32(a.v[i], b.v[i]); });
}
inline Ints mul(Ints a, Ints b) {
  return each<Ints>([&](int i) { return vmulq_s32(a.v[i], b.v[i]); });
}
inline Ints bit_and(Ints a, Ints b) {
  return each<Ints>([&](int i) { return vandq_s32(a.v[i], b.v[i]); });
}
inline Ints max(Ints a, Ints b) {
  return each<Ints>([&](int i) { return vmaxq_s32(a.v[i], b.v[i]); });
}
template <int N>
inline Ints shift_left(Ints a) {
  return each<Ints>([&](int i) { return vshlq_n_s32(a.v[i], N); });
}
inline Ints halve(Ints a) {
  return each<Ints>([&](int i) { return vshrq_n_s32(a.v[i], 1); });
}
inline Ints bits_of(Floats a) {
  return each<Ints>([&](int i) { return vreinterpretq_s32_f32(a.v[i]); });
}
inline Floats floats_of_bits(Ints a) {
  return each<Floats>([&](int i) { return vreinterpretq_f32_s32(a.v[i]); });
}
inline Floats to_floats(Ints a) {
  return each<Floats>([&](int i) { return vcvtq_f32_s32(a.v[i]); });
}
inline void store_s8(int8_t* p, Ints a) {
  const int16x8_t low = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
inline int32_t reduce_add(Ints a) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
inline int32_t reduce_max(Ints a) {
  return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
}

// --- codes
inline Codes load_codes(const uint8_t* p) {
  return each<Codes>([=](int i) { return vld1q_u8(p + 16 * i); });
}
inline void store_codes(uint8_t* p, Codes c) {
  for (int i = 0; i < kQuarters; ++i) vst1q_u8(p + 16 * i, c.v[i]);
}
inline Codes same_codes(uint8_t code) {
  return each<Codes>([=](int) { return vdupq_n_u8(code); });
}
inline Codes load_book(const int8_t* book, int count) {
  uint8_t entry[16] = {};
  for (int i = 0; i < count; ++i) entry[i] = static_cast<uint8_t>(book[i] + 128);
  return each<Codes>([&](int) { return vld1q_u8(entry); });
}
inline Codes look_up(Codes table, Codes c) {
  return each<Codes>([&](int i) { return vqtbl1q_u8(table.v[i], c.v[i]); });
}
inline Codes load_ternary(const uint8_t* p) { return load_codes(p); }
inline Codes first_digit(Codes left) {  // 3 x >= 256, and 3 x >= 512: all bits of a byte, which is -1
  return each<Codes>([&](int i) {
    const uint8x16_t second = vcgeq_u8(left.v[i], vdupq_n_u8(86)), third = vcgeq_u8(left.v[i], vdupq_n_u8(171));
    return vreinterpretq_u8_s8(vabsq_s8(vreinterpretq_s8_u8(vaddq_u8(second, third))));
  });
}
inline Codes times_three(Codes left) {
  return each<Codes>([&](int i) { return vmulq_u8(left.v[i], vdupq_n_u8(3)); });
}
inline void unpack4(const uint8_t* p, Codes* c) {
  for (int k = 0; k < 2; ++k) {
    const Codes both = load_codes(p + 64 * k);
    c[2 * k] = each<Codes>([&](int i) { return vandq_u8(both.v[i], vdupq_n_u8(15)); });
    c[2 * k + 1] = each<Codes>([&](int i) { return vshrq_n_u8(both.v[i], 4); });
  }
}
inline void unpack2(const uint8_t* p, Codes* c) {
  const Codes four = load_codes(p);
  const uint8x16_t low = vdupq_n_u8(3);
  c[0] = each<Codes>([&](int i) { return vandq_u8(four.v[i], low); });
  c[1] = each<Codes>([&](int i) { return vandq_u8(vshrq_n_u8(four.v[i], 2), low); });
  c[2] = each<Codes>([&](int i) { return vandq_u8(vshrq_n_u8(four.v[i], 4), low); });
  c[3] = each<Codes>([&](int i) { return vshrq_n_u8(four.v[i], 6); });
}
template <int WORTH>
inline void add_plane2(const uint8_t* p, Codes* c) {
  Codes high[4];
  unpack2(p, high);
  for (int k = 0; k < 4; ++k) {
    c[k] = each<Codes>([&](int i) { return vmlaq_u8(c[k].v[i], high[k].v[i], vdupq_n_u8(WORTH)); });
  }
}
template <int WORTH>
inline void add_plane1(const uint8_t* p, Codes* c) {
  constexpr uint8_t kBit[] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t bit = vld1q_u8(kBit), worth = vdupq_n_u8(WORTH);
  for (int k = 0; k < 4; ++k) {
    c[k] = each<Codes>([&](int i) {  // 16 bits, each to a byte
      const uint8_t* two = p + 8 * k + 2 * i;
      const uint8x16_t spread = vcombine_u8(vdup_n_u8(two[0]), vdup_n_u8(two[1]));
      return vorrq_u8(c[k].v[i], vandq_u8(vtstq_u8(spread, bit), worth));
    });
  }
}

// dot, by product(sum, 4 rows' codes of 4 inputs, those inputs four times): the new sum.
template <int VECTORS, int CHAINS, class Product>
inline void dot_by(Ints* acc, const Codes* c, const int8_t* x, Product product) {
#pragma GCC unroll 4
  for (int k = 0; k < VECTORS; ++k) {
    int32_t four;
    std::memcpy(&four, x + 4 * k, sizeof four);
    const int8x16_t activations = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 4
    for (int i = 0; i < kQuarters; ++i) {
      int32x4_t& sum = acc[k % CHAINS].v[i];
      sum = product(sum, c[k].v[i], activations);
    }
  }
}

}  // namespace
}  // namespace penjing
