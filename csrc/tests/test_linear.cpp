// Matrix products, quantized activations and single rows.
#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/check.h"
#include "tests/random_matrix.h"

namespace penjing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kColumnCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 28, 33};
constexpr int kMostColumns = 33;

float half_value(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  float value = std::ldexp(static_cast<float>(exponent ? fraction + 1024 : fraction), std::max(exponent, 1) - 25);
  if (exponent == 31) value = fraction ? kNan : kInfinity;
  return half & 0x8000 ? -value : value;
}

// One code, as penjing.h describes the planes.
int code_at(const Matrix& w, int row, int group, int input) {
  const int panel = row / 16, entry = 4 * (row % 16) + input % 4, block = input / 4;
  const uint8_t* plane = w.data + panel * w.panel_bytes + static_cast<size_t>(group) * w.stride * 16 * w.bits / 8;
  const auto from = [&](int width) {
    const int per_byte = 8 / width;
    if (width == 1) return plane[block * 8 + entry / 8] >> (entry % 8) & 1;
    return plane[block / per_byte * 64 + entry] >> (block % per_byte * width) & ((1 << width) - 1);
  };
  const int low = w.bits == 3 ? 2 : w.bits == 5 || w.bits == 6 ? 4 : w.bits;
  int code = from(low);
  plane += w.stride * 16 * low / 8;
  if (w.bits > low) code += from(w.bits - low) << low;
  return code;
}

int zero_at(const Matrix& w, int row, int group) {
  const size_t at = (static_cast<size_t>(row / 16) * w.num_groups + group) * 16 + row % 16;
  return w.zeros ? w.zeros[at] : 1 << (w.bits - 1);
}
// As penjing.h tells: three times what is left of a byte is the next digit, in bits 8 and 9.
int ternary_at(const Matrix& w, int row, int group, int input) {
  constexpr int kPowers[] = {1, 3, 9, 27, 81, 243};
  const int unit = (group * w.stride + input) / 16, block = input % 16 / 4, fifth = unit % 5 == 4;
  const int part = fifth ? block : unit % 5, digit = fifth ? 0 : 1 + block;
  const int byte =
      w.data[row / 16 * w.panel_bytes + static_cast<size_t>(unit / 5) * 256 + part * 64 + 4 * (row % 16) + input % 4];
  return (byte * kPowers[digit + 1] >> 8) - 3 * (byte * kPowers[digit] >> 8);
}

// What a code stands for, in units of its scale.
int level_at(const Matrix& w, int row, int group, int input) {
  if (w.levels == PJ_TERNARY) return ternary_at(w, row, group, input) - 1;
  const int code = code_at(w, row, group, input);
  if (w.levels == PJ_BOOK) return w.book[code];
  return w.bits == 1 ? 2 * code - 1 : code - zero_at(w, row, group);
}

float scale_at(const Matrix& w, int row, int group) {
  const size_t at = (static_cast<size_t>(row / 16) * w.num_groups + group) * 16 + row % 16;
  if (w.scale_bytes == 1)
    return half_value(static_cast<uint16_t>((w.scales[at] & 0x80) << 8 | (w.scales[at] & 0x7f) << 7));
  return half_value(static_cast<uint16_t>(w.scales[2 * at] | w.scales[2 * at + 1] << 8));
}

// y[column][row] of the contract.
std::vector<float> expected_codes(const Matrix& w, const RandomColumns& x, int columns) {
  const int rows = 16 * w.num_panels;
  std::vector<float> y(static_cast<size_t>(columns) * rows);
  for (int row = 0; row < rows; ++row) {
    std::vector<float> acc(columns, 0.0f);
    for (int g = 0; g < w.num_groups; ++g) {
      std::vector<int> weight(w.group_size);
      for (int i = 0; i < w.group_size; ++i) weight[i] = level_at(w, row, g, i);
      for (int c = 0; c < columns; ++c) {
        const int8_t* code = x.quantized.code + (static_cast<size_t>(c) * w.num_groups + g) * w.stride;
        int sum = 0;
        for (int i = 0; i < w.group_size; ++i) sum += weight[i] * code[i];
        const float scale = scale_at(w, row, g) * x.quantized.scale[g * x.quantized.ld + c];
        acc[c] = std::fma(static_cast<float>(sum), scale, acc[c]);
      }
    }
    for (int c = 0; c < columns; ++c) {
      y[static_cast<size_t>(c) * rows + row] = w.bias && row < w.rows ? acc[c] + w.bias[row] : acc[c];
    }
  }
  return y;
}

// Runs `call(begin, end, columns, y, ld_y)` for all counts of columns, whole and split between panels, and compares.
template <class Call>
void check_linear(const std::string& what, const Matrix& w, const std::vector<float>& expected, const Call& call) {
  const size_t rows = 16 * static_cast<size_t>(w.num_panels), gap = 3;
  for (int columns : kColumnCounts) {
    for (int split : {0, 1}) {
      if (split >= w.num_panels) continue;
      std::vector<float> y = poisoned(columns * (rows + gap) - gap);
      if (split) call(0, split, columns, y.data(), rows + gap);
      call(split, w.num_panels, columns, y.data(), rows + gap);
      bool ok = true;
      for (int c = 0; c < columns; ++c) {
        ok = ok && same(&y[c * (rows + gap)], &expected[c * rows], rows);
        for (size_t i = 0; c + 1 < columns && i < gap; ++i) ok = ok && is_poison(y[c * (rows + gap) + rows + i]);
      }
      check(ok, what + " columns " + std::to_string(columns) + " split " + std::to_string(split));
    }
  }
}

void check_codes(const Tables& tables, int bits, int group, int groups, int rows, bool symmetric, bool bias,
                 pj_levels levels = PJ_UNIFORM, int scale_bytes = 2) {
  Random random(static_cast<uint64_t>(bits * 1000 + group));
  const int cols = group * groups;
  const RandomMatrix m(random, rows, cols, bits, group, symmetric, bias, levels, scale_bytes);
  const RandomColumns x(random, tables.oracle(), kMostColumns, cols, group);
  const std::vector<float> expected = expected_codes(m.matrix, x, kMostColumns);
  const std::string shape = " levels " + std::to_string(levels) + " bits " + std::to_string(bits) + " group " +
                            std::to_string(group) + " rows " + std::to_string(rows) +
                            (symmetric ? " symmetric" : " asymmetric") + (bias ? " bias" : "") +
                            (scale_bytes == 1 ? " small scales" : "");
  for (const Kernels* k : tables) {
    AlignedVector<uint8_t> scratch(linear_scratch_bytes(m.matrix), 0xff);
    check_linear(k->name + shape, m.matrix, expected, [&](int begin, int end, int columns, float* y, size_t ld_y) {
      k->linear_codes(m.matrix, begin, end, x.quantized, columns, y, ld_y, scratch.data());
    });
    std::vector<float> row(cols);
    bool ok = true;
    for (int r = 0; r < rows; r += 7) {
      k->read_row(m.matrix, r, row.data());
      for (int i = 0; i < cols; ++i) {
        const int level = level_at(m.matrix, r, i / group, i % group);
        ok = ok && same(row[i], static_cast<float>(level) * scale_at(m.matrix, r, i / group));
      }
    }
    check(ok, k->name + shape + " read_row");
  }
}

// More columns than any kernel takes at once, and zero points that no code reaches.
void check_many_columns(const Tables& tables) {
  constexpr int kColumns = 2 * 128 + 17;
  Random random(11);
  for (bool symmetric : {true, false}) {
    const RandomMatrix m(random, 20, 96, 4, 48, symmetric, true);
    for (size_t i = 0; m.matrix.zeros && i < 32; ++i) const_cast<uint8_t*>(m.matrix.zeros)[i] = 255;
    const RandomColumns x(random, tables.oracle(), kColumns, 96, 48);
    const std::vector<float> expected = expected_codes(m.matrix, x, kColumns);
    for (const Kernels* k : tables) {
      AlignedVector<uint8_t> scratch(linear_scratch_bytes(m.matrix), 0xff);
      std::vector<float> y = poisoned(expected.size());
      k->linear_codes(m.matrix, 0, 2, x.quantized, kColumns, y.data(), 32, scratch.data());
      check(same(y, expected), k->name + std::string(symmetric ? " many columns" : " many columns, far zeros"));
    }
  }
}

// The largest codes and activations: where 16-bit products would overflow.
void check_extremes(const Tables& tables) {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    Random random(9);
    RandomMatrix m(random, 16, 64, bits, 64, false, false);
    const std::vector<uint8_t> ones(m.matrix.panel_bytes, 0xff), zeros(16, 0);
    m.matrix.data = ones.data();
    m.matrix.zeros = zeros.data();
    for (float sign : {1.0f, -1.0f}) {
      RandomColumns x(random, tables.oracle(), kMostColumns, 64, 64);
      std::fill(x.x.begin(), x.x.end(), sign);
      tables.oracle().quantize_columns(x.x.data(), kMostColumns, 64, 64, x.quantized);
      const std::vector<float> expected = expected_codes(m.matrix, x, kMostColumns);
      for (const Kernels* k : tables) {
        AlignedVector<uint8_t> scratch(linear_scratch_bytes(m.matrix), 0xff);
        const auto call = [&](int begin, int end, int columns, float* y, size_t ld_y) {
          k->linear_codes(m.matrix, begin, end, x.quantized, columns, y, ld_y, scratch.data());
        };
        check_linear(std::string(k->name) + " extremes bits " + std::to_string(bits), m.matrix, expected, call);
      }
    }
  }
}

// The largest entries of books, where sums in 16 bits would overflow; all bytes of ternary digits.
void check_extreme_levels(const Tables& tables) {
  std::vector<uint8_t> every(256);
  for (int i = 0; i < 256; ++i) every[static_cast<size_t>(i)] = static_cast<uint8_t>(i);
  for (int entry : {-128, 127}) {
    for (pj_levels levels : {PJ_TERNARY, PJ_BOOK}) {
      Random random(9);
      RandomMatrix m(random, 16, 80, 2, 80, true, false, levels);
      std::vector<uint8_t> data(m.matrix.panel_bytes);
      for (size_t i = 0; i < data.size(); ++i) data[i] = every[i % 256];
      const std::vector<int8_t> book(4, static_cast<int8_t>(entry));
      m.matrix.data = data.data();
      if (levels == PJ_BOOK) m.matrix.book = book.data();
      RandomColumns x(random, tables.oracle(), kMostColumns, 80, 80);
      std::fill(x.x.begin(), x.x.end(), -1.0f);
      tables.oracle().quantize_columns(x.x.data(), kMostColumns, 80, 80, x.quantized);
      const std::vector<float> expected = expected_codes(m.matrix, x, kMostColumns);
      for (const Kernels* k : tables) {
        std::vector<uint8_t> scratch(linear_scratch_bytes(m.matrix), 0xff);
        const auto call = [&](int begin, int end, int columns, float* y, size_t ld_y) {
          k->linear_codes(m.matrix, begin, end, x.quantized, columns, y, ld_y, scratch.data());
        };
        check_linear(std::string(k->name) + " extremes of levels " + std::to_string(levels), m.matrix, expected, call);
      }
    }
  }
}

float float_at(const Matrix& w, int row, int input) {
  const size_t at = static_cast<size_t>(input) * 16 + row % 16;
  const uint8_t* panel = w.data + row / 16 * w.panel_bytes;
  uint32_t bits = 0;
  std::memcpy(&bits, panel + at * (w.kind == PJ_F32 ? 4 : 2), w.kind == PJ_F32 ? 4 : 2);
  if (w.kind == PJ_F16) return half_value(static_cast<uint16_t>(bits));
  if (w.kind == PJ_BF16) bits <<= 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void check_float(const Tables& tables, pj_kind kind, int rows, int cols, bool bias) {
  Random random(static_cast<uint64_t>(rows * 100 + cols));
  const RandomMatrix m(random, rows, cols, kind, bias);
  std::vector<float> x(static_cast<size_t>(kMostColumns) * cols);
  for (float& value : x) value = random.normal();
  const size_t padded = 16 * static_cast<size_t>(m.matrix.num_panels);
  std::vector<float> expected(kMostColumns * padded);
  for (int c = 0; c < kMostColumns; ++c) {
    for (int row = 0; row < static_cast<int>(padded); ++row) {
      float acc = 0.0f;
      for (int i = 0; i < cols; ++i) acc = std::fma(float_at(m.matrix, row, i), x[c * cols + i], acc);
      expected[c * padded + row] = bias && row < rows ? acc + m.matrix.bias[row] : acc;
    }
  }
  for (const Kernels* k : tables) {
    const std::string what = std::string(k->name) + " kind " + std::to_string(kind) + " " + std::to_string(rows) + "x" +
                             std::to_string(cols);
    check_linear(what, m.matrix, expected, [&](int begin, int end, int columns, float* y, size_t ld_y) {
      k->linear_float(m.matrix, begin, end, x.data(), columns, y, ld_y);
    });
    std::vector<float> row(cols);
    k->read_row(m.matrix, rows - 1, row.data());
    bool ok = true;
    for (int i = 0; i < cols; ++i) ok = ok && same(row[i], float_at(m.matrix, rows - 1, i));
    check(ok, what + " read_row");
  }
}

// Every float16 there is, through the float product.
void check_all_halves(const Tables& tables) {
  std::vector<uint16_t> halves(65536);
  for (int i = 0; i < 65536; ++i) halves[i] = static_cast<uint16_t>(i);
  Matrix w = {};
  w.kind = PJ_F16;
  w.data = reinterpret_cast<const uint8_t*>(halves.data());
  w.rows = 65536;
  w.cols = 1;
  w.num_panels = 4096;
  w.panel_bytes = 32;
  const float one = 1.0f;
  for (const Kernels* k : tables) {
    std::vector<float> y = poisoned(65536);
    k->linear_float(w, 0, w.num_panels, &one, 1, y.data(), y.size());
    bool ok = true;
    for (int i = 0; i < 65536; ++i) ok = ok && same(y[i], half_value(halves[i]) + 0.0f);  // -0 * 1 + 0 is +0
    check(ok, std::string(k->name) + " all halves");
  }
}

// One rounding, where two (a sum in double first, as an emulation is tempted to) come out elsewhere; overflow, and what
// is below the smallest normal float.
void check_fused(const Tables& tables) {
  struct Fused {
    float a, b, c, expected;  // a b + c
  };
  constexpr float kUlp = 0x1p-23f, kHalfUlp = 0x1p-24f, kMost = std::numeric_limits<float>::max();
  const Fused cases[] = {
      {kHalfUlp * (1 + kUlp), 1 - kUlp, 1 + kUlp, 1 + kUlp},   // 2^-70 below the middle of two floats
      {-kHalfUlp * (1 + kUlp), 1 - kUlp, 1 + kUlp, 1 + kUlp},  // 2^-70 above the middle
      {kHalfUlp * (1 + kUlp), 1 - kUlp, -(1 + kUlp), -(1 + kUlp)},
      {-kHalfUlp * (1 + kUlp), 1 - kUlp, -(1 + kUlp), -(1 + kUlp)},
      {kHalfUlp, 1, 1 + kUlp, 1 + 2 * kUlp},  // the middle: to even
      {1 + kUlp, 1 + kUlp, -(1 + 2 * kUlp), 0x1p-46f},
      {kMost, 2, -kMost, kMost},
      {kMost, kMost, 1, kInfinity},
      {kMost, kMost, -kInfinity, -kInfinity},
      {0x1p-100f, 0x1p-49f, 0, 0x1p-149f},
      {0x1p-100f, 0x1p-50f, 0x1p-149f, 0x1p-148f},  // the middle again: to even
      {0x1p-100f, 0x1p-51f, 0x1p-149f, 0x1p-149f},
  };
  for (const Kernels* k : tables) {
    for (const Fused& f : cases) {
      float weight[32] = {}, out[16];
      weight[0] = f.c;
      weight[16] = f.a;
      const float x[] = {1.0f, f.b};
      Matrix w{};
      w.kind = PJ_F32;
      w.data = reinterpret_cast<const uint8_t*>(weight);
      w.rows = w.num_panels = 1;
      w.cols = 2;
      w.panel_bytes = sizeof weight;
      k->linear_float(w, 0, 1, x, 1, out, 16);
      check(same(out[0], f.expected), std::string(k->name) + " rounds once");
    }
  }
}

// Codes, scale and sum of one column against the contract.
void check_quantize(const Tables& tables, const std::vector<float>& x, int group, const std::string& what) {
  const int cols = static_cast<int>(x.size()), groups = cols / group, stride = (group + 15) / 16 * 16;
  for (const Kernels* k : tables) {
    std::vector<int8_t> code(static_cast<size_t>(groups) * stride, 99);
    std::vector<float> scale = poisoned(groups);
    std::vector<int32_t> sum(groups, 12345);
    k->quantize_columns(x.data(), 1, cols, group, {code.data(), scale.data(), sum.data(), 1});
    bool ok = true;
    for (int g = 0; g < groups; ++g) {
      float amax = 0.0f;
      bool finite = true;
      for (int i = 0; i < group; ++i) {
        amax = std::max(amax, std::fabs(x[g * group + i]));
        finite = finite && std::isfinite(x[g * group + i]);
      }
      const bool zero = amax < 0x1p-100f;
      int total = 0;
      ok = ok && same(scale[g], !finite ? kNan : zero ? 0.0f : amax / 127.0f);
      for (int i = 0; i < stride; ++i) {
        const bool coded = i < group && finite && !zero;
        const int expected = coded ? static_cast<int>(std::nearbyint(x[g * group + i] * (127.0f / amax))) : 0;
        ok = ok && code[g * stride + i] == expected;
        total += expected;
      }
      ok = ok && sum[g] == total;
    }
    check(ok, std::string(k->name) + " quantize " + what);
  }
}

void check_quantizes(const Tables& tables) {
  for (int group : {1, 7, 15, 16, 17, 32, 36, 64, 100}) {
    Random random(static_cast<uint64_t>(group));
    std::vector<float> x(3 * static_cast<size_t>(group));
    for (float magnitude : {1.0f, 1e-30f, 1e-38f, 1e-44f, 1e38f}) {
      for (float& value : x) value = magnitude * std::min(std::max(random.normal(), -3.0f), 3.0f);
      check_quantize(tables, x, group, "group " + std::to_string(group));
    }
    for (float special : {0.0f, -0.0f, kInfinity, -kInfinity, kNan, std::numeric_limits<float>::max()}) {
      std::vector<float> y = x;
      y[y.size() - 1] = special;
      check_quantize(tables, y, group, "special in group " + std::to_string(group));
    }
    check_quantize(tables, std::vector<float>(x.size(), 0.0f), group, "zeros");
  }
  std::vector<float> ties(64);  // amax 127: codes x.5 must go to the even neighbour
  for (int i = 0; i < 64; ++i) ties[i] = i == 0 ? 127.0f : static_cast<float>(i) - 32.5f;
  check_quantize(tables, ties, 64, "ties");
}

}  // namespace

void test_linear(const Tables& tables) {
  struct Grouping {
    int size, count;
  };
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (Grouping group : {Grouping{16, 3}, {32, 2}, {36, 3}, {64, 1}, {96, 2}, {100, 1}, {4, 5}}) {
      for (int rows : {1, 15, 16, 17, 48}) {
        for (int variant = 0; variant < 4; ++variant) {
          check_codes(tables, bits, group.size, group.count, rows, variant & 1, variant & 2);
        }
      }
    }
  }
  struct Levels {
    pj_levels levels;
    int bits;
  };
  for (Levels way : {Levels{PJ_UNIFORM, 1}, {PJ_TERNARY, 2}, {PJ_BOOK, 2}, {PJ_BOOK, 3}, {PJ_BOOK, 4}}) {
    for (Grouping group : {Grouping{16, 3}, {32, 2}, {36, 3}, {64, 1}, {96, 2}, {80, 1}, {160, 2}, {4, 9}}) {
      for (int rows : {1, 17, 48}) {
        for (bool bias : {false, true}) {
          for (int scale_bytes : {1, 2}) {
            check_codes(tables, way.bits, group.size, group.count, rows, true, bias, way.levels, scale_bytes);
          }
        }
      }
    }
  }
  check_codes(tables, 4, 36, 3, 17, false, true, PJ_UNIFORM, 1);
  check_many_columns(tables);
  check_extremes(tables);
  check_extreme_levels(tables);
  for (pj_kind kind : {PJ_F32, PJ_F16, PJ_BF16}) {
    for (int rows : {1, 15, 16, 17, 48, 80}) {
      for (int cols : {1, 7, 64}) {
        for (bool bias : {false, true}) check_float(tables, kind, rows, cols, bias);
      }
    }
  }
  check_fused(tables);
  check_all_halves(tables);
  check_quantizes(tables);
}

}  // namespace penjing
