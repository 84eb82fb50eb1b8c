// Random weights, activations and caches for the kernels' tests and benches. Every array is a heap block of exactly
// the size the layout promises, so that AddressSanitizer sees any access past it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "kernels/kernels.h"

namespace penjing {

// splitmix64: the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  int below(int n) { return static_cast<int>(next() % static_cast<uint64_t>(n)); }
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-24f; }  // [0, 1)
  float normal() {                                                         // a sum of uniforms is near enough
    float sum = -6.0f;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }
  uint8_t small_scale() {  // any, but denormal ones, which make products slow, seldom, as in models
    const uint8_t scale = next() & 0xff;
    return (scale & 0x78) == 0 && next() % 64 ? scale | 0x40 : scale;
  }
  uint16_t half() {  // +-[2^-10, 2^-6): like the scales and weights of a model
    return static_cast<uint16_t>((next() & 0x8000) | (5u + next() % 4) << 10 | (next() & 0x3ff));
  }

 private:
  uint64_t state_;
};

// Memory as a session hands it out: arrays begin with a cache line.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
  template <class U>
  bool operator==(const Aligned<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const Aligned<U>&) const {
    return false;
  }
};
template <class T>
using AlignedVector = std::vector<T, Aligned<T>>;

class RandomMatrix {
 public:
  RandomMatrix(Random& random, int rows, int cols, int bits, int group_size, bool symmetric, bool bias,
               pj_levels levels = PJ_UNIFORM, int scale_bytes = 2) {
    matrix.kind = PJ_CODES;
    matrix.levels = levels;
    matrix.scale_bytes = scale_bytes;
    set_shape(rows, cols);
    matrix.bits = bits;
    matrix.group_size = group_size;
    matrix.num_groups = cols / group_size;
    matrix.stride = (group_size + 15) / 16 * 16;
    const size_t units = static_cast<size_t>(matrix.num_groups) * matrix.stride / 16;
    matrix.panel_bytes = levels == PJ_TERNARY ? 64 * (units / 5 * 4 + units % 5) : units * 32 * bits;
    if (levels == PJ_BOOK) book_.resize(static_cast<size_t>(1) << bits);
    for (int8_t& entry : book_) entry = static_cast<int8_t>(random.below(256) - 128);
    data_.resize(matrix.panel_bytes * matrix.num_panels);
    const size_t num_scales = static_cast<size_t>(matrix.num_panels) * matrix.num_groups * PJ_LANES;
    scales_.resize(num_scales * scale_bytes);
    if (!symmetric) zeros_.resize(num_scales);
    for (uint8_t& byte : data_) byte = static_cast<uint8_t>(random.next());
    for (size_t i = 0; i < num_scales; ++i) {
      const size_t panel = i / PJ_LANES / matrix.num_groups;
      if (static_cast<int>(panel * PJ_LANES + i % PJ_LANES) >= rows) continue;
      const uint16_t scale = scale_bytes == 2 ? random.half() : random.small_scale();
      std::memcpy(scales_.data() + i * scale_bytes, &scale, scale_bytes);
    }
    for (uint8_t& zero : zeros_) zero = static_cast<uint8_t>(random.below(1 << bits));
    add_bias(random, bias);
  }
  RandomMatrix(Random& random, int rows, int cols, pj_kind kind, bool bias) {
    matrix.kind = kind;
    set_shape(rows, cols);
    const size_t element = kind == PJ_F32 ? 4 : 2;
    matrix.panel_bytes = element * PJ_LANES * cols;
    data_.resize(matrix.panel_bytes * matrix.num_panels);
    for (size_t i = 0; i < data_.size() / element; ++i) {
      const float value = random.normal();
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      const uint16_t half = kind == PJ_F16 ? random.half() : static_cast<uint16_t>(bits >> 16);
      std::memcpy(data_.data() + i * element, kind == PJ_F32 ? static_cast<const void*>(&bits) : &half, element);
    }
    add_bias(random, bias);
  }

  void relink() {  // after a copy
    matrix.data = data_.data();
    matrix.scales = scales_.data();
    matrix.zeros = zeros_.empty() ? nullptr : zeros_.data();
    matrix.bias = bias_.empty() ? nullptr : bias_.data();
    matrix.book = book_.empty() ? nullptr : book_.data();
  }
  size_t bytes() const { return data_.size() + scales_.size() + zeros_.size() + book_.size(); }

  Matrix matrix = {};

 private:
  void set_shape(int rows, int cols) {
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.num_panels = (rows + PJ_LANES - 1) / PJ_LANES;
  }
  void add_bias(Random& random, bool bias) {
    if (bias) bias_.resize(matrix.rows);
    for (float& value : bias_) value = random.normal();
    relink();
  }

  AlignedVector<uint8_t> data_, scales_, zeros_;
  std::vector<int8_t> book_;
  std::vector<float> bias_;
};

struct RandomColumns {
  RandomColumns(Random& random, const Kernels& kernels, int columns, int cols, int group_size)
      : x(static_cast<size_t>(columns) * cols) {
    const int num_groups = cols / group_size, stride = (group_size + 15) / 16 * 16;
    code.resize(static_cast<size_t>(columns) * num_groups * stride);
    scale.resize(static_cast<size_t>(columns) * num_groups);
    sum.resize(scale.size());
    for (float& value : x) value = random.normal();
    quantized = {code.data(), scale.data(), sum.data(), columns};
    kernels.quantize_columns(x.data(), columns, cols, group_size, quantized);
  }
  RandomColumns(const RandomColumns&) = delete;

  std::vector<float> x;
  AlignedVector<float> scale;
  AlignedVector<int8_t> code;
  AlignedVector<int32_t> sum;
  QuantizedColumns quantized;
};

// `length` random positions in a cache with room for whole blocks of 16, or in a ring; what is not stored is NaN.
struct RandomCache {
  RandomCache(Random& random, const Kernels& kernels, pj_kind kind, int head_dim, int length, int ring = 0)
      : capacity(ring ? ring : (length + 15) / 16 * 16),
        keys(capacity * kv_row_bytes(kind, head_dim), 0xff),
        values(keys.size(), 0xff),
        key_scales(capacity, std::nanf("")),
        value_scales(key_scales),
        head{keys.data(), values.data(), kind, capacity, key_scales.data(), value_scales.data()} {
    std::vector<float> key(head_dim), value(head_dim);
    for (int position = 0; position < length; ++position) {
      for (int d = 0; d < head_dim; ++d) {
        key[d] = random.normal();
        value[d] = random.normal();
      }
      kernels.store_kv(head, head_dim, position, key.data(), value.data());
    }
  }
  RandomCache(const RandomCache&) = delete;

  int capacity;
  AlignedVector<uint8_t> keys, values;
  AlignedVector<float> key_scales, value_scales;
  KvHead head;
};

}  // namespace penjing
