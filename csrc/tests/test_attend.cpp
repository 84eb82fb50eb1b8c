// The cache and attention over it.
#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/check.h"
#include "tests/random_matrix.h"

namespace penjing {
namespace {

struct Case {
  pj_kind kind;
  int head_dim, length, queries, window;
  int repeats;  // queries at one position: heads that share keys and values

  std::string name() const {
    return std::string(kind == PJ_I8    ? " i8"
                       : kind == PJ_F16 ? " f16"
                                        : " f32") +
           " dim " + std::to_string(head_dim) + " length " + std::to_string(length) + " queries " +
           std::to_string(queries) + " window " + std::to_string(window) + " repeats " + std::to_string(repeats);
  }
};

// q and out: rows head_dim + 3 apart, the gap poisoned.
struct Problem {
  Problem(const Case& c, const Kernels& oracle, int ring = 0)
      : shape(c),
        random(static_cast<uint64_t>(c.head_dim * 1000 + c.length)),
        cache(random, oracle, c.kind, c.head_dim, c.length, ring) {
    q = poisoned(ld() * (c.queries - 1) + c.head_dim);
    for (int r = 0; r < c.queries; ++r) {
      positions.push_back(c.length - 1 - (c.queries - 1 - r) / c.repeats);
      for (int d = 0; d < c.head_dim; ++d)
        q[r * ld() + d] = random.normal() / std::sqrt(static_cast<float>(c.head_dim));
    }
  }
  size_t ld() const { return static_cast<size_t>(shape.head_dim) + 3; }

  // All queries, `step` of them a call.
  std::vector<float> run(const Kernels& k, int step) const {
    std::vector<float> out = poisoned(q.size());
    for (int r = 0; r < shape.queries; r += step) {
      const int n = std::min(step, shape.queries - r);
      std::vector<uint8_t> scratch(attend_scratch_bytes(shape.head_dim, n), 0xff);
      k.attend(cache.head, shape.head_dim, q.data() + r * ld(), ld(), positions.data() + r, n, shape.window,
               out.data() + r * ld(), ld(), scratch.data());
    }
    return out;
  }

  Case shape;
  Random random;
  RandomCache cache;
  std::vector<float> q;
  std::vector<int32_t> positions;
};

float half_value(uint16_t half, const Kernels& oracle) {
  Matrix w = {};  // one row of one float16: read_row does the conversion
  uint16_t panel[16] = {half};
  w.kind = PJ_F16;
  w.data = reinterpret_cast<const uint8_t*>(panel);
  w.cols = 1;
  float value;
  oracle.read_row(w, 0, &value);
  return value;
}

// Where an element lies, as kernels.h tells.
size_t key_at(const KvHead& head, int dim, int position, int d) {
  const size_t block = static_cast<size_t>(position / 16), i = static_cast<size_t>(position % 16);
  if (head.kind != PJ_I8) return (block * dim + d) * 16 + i;
  return block * 16 * kv_row_bytes(PJ_I8, dim) + d / 16 * 256 + d % 16 / 4 * 64 + i * 4 + d % 4;
}
size_t value_at(const KvHead& head, int dim, int position, int d) {
  if (head.kind != PJ_I8) return static_cast<size_t>(position) * dim + d;
  const size_t block = static_cast<size_t>(position / 16), i = static_cast<size_t>(position % 16);
  return block * 16 * kv_row_bytes(PJ_I8, dim) + d / 16 * 256 + i / 4 * 64 + d % 16 * 4 + i % 4;
}

// An element of keys or values; of codes without its scale.
float element(const KvHead& head, const void* array, size_t at, const Kernels& oracle) {
  if (head.kind == PJ_F32) return static_cast<const float*>(array)[at];
  if (head.kind == PJ_I8) return static_cast<float>(static_cast<const uint8_t*>(array)[at] - 128);
  return half_value(static_cast<const uint16_t*>(array)[at], oracle);
}
float key_of(const KvHead& head, int dim, int position, int d, const Kernels& oracle) {
  const float found = element(head, head.keys, key_at(head, dim, position, d), oracle);
  return head.kind == PJ_I8 ? found * head.key_scales[position] : found;
}
float value_of(const KvHead& head, int dim, int position, int d, const Kernels& oracle) {
  const float found = element(head, head.values, value_at(head, dim, position, d), oracle);
  return head.kind == PJ_I8 ? found * head.value_scales[position] : found;
}

// The query as the scores see it.
std::vector<double> query_of(const Problem& p, int r) {
  const float* q = &p.q[r * p.ld()];
  std::vector<double> out(q, q + p.shape.head_dim);
  if (p.shape.kind != PJ_I8) return out;
  double largest = 0;
  for (double x : out) largest = std::max(largest, std::fabs(x));
  for (double& x : out) x = std::nearbyint(x * (127 / largest)) * (largest / 127);
  return out;
}

// Softmax in float64, and how far rounding may take float32 from it; of codes also the rounding of a span's weights.
bool is_right(const Problem& p, const std::vector<float>& out, const Kernels& oracle) {
  const KvHead& head = p.cache.head;
  const int dim = p.shape.head_dim;
  for (int r = 0; r < p.shape.queries; ++r) {
    const int last = p.positions[r], first = p.shape.window ? std::max(0, last - p.shape.window + 1) : 0;
    const std::vector<double> q = query_of(p, r);
    std::vector<double> weight, sum(dim, 0.0), half_steps(dim, 0.0);
    double largest = -1e300, total = 0, largest_value = 0, largest_terms = 0;
    for (int i = first; i <= last; ++i) {
      double dot = 0, terms = 0;
      for (int d = 0; d < dim; ++d) {
        const double product = q[d] * key_of(head, dim, i, d, oracle);
        dot += product;
        terms += std::fabs(product);
      }
      weight.push_back(dot);
      largest = std::max(largest, dot);
      largest_terms = std::max(largest_terms, terms);
    }
    for (double& w : weight) total += w = std::exp(w - largest);
    for (int i = first; i <= last; ++i) {
      double step = 0;  // of the codes of the weights of this span
      for (int j = std::max(first, i / kSpan * kSpan); head.kind == PJ_I8 && j <= last && j / kSpan == i / kSpan; ++j) {
        step = std::max(step, weight[j - first] * head.value_scales[j] / 127);
      }
      for (int d = 0; d < dim; ++d) {
        const double value = value_of(head, dim, i, d, oracle);
        sum[d] += weight[i - first] * value;
        largest_value = std::max(largest_value, std::fabs(value));
        if (step > 0) half_steps[d] += 0.5 * step * std::fabs(value / head.value_scales[i]);
      }
    }
    // a score is off by dim roundings of its terms, which the exponential makes relative; then sums of length terms
    const double relative =
        (2 * dim * largest_terms + 2.0 * (last - first + 1) + 16) * std::numeric_limits<float>::epsilon();
    for (int d = 0; d < dim; ++d) {
      const double tolerance = relative * largest_value + half_steps[d] / total * (1 + relative);
      if (!(std::fabs(out[r * p.ld() + d] - sum[d] / total) <= tolerance)) return false;
    }
  }
  return true;
}

void check_attend(const Tables& tables, const Case& c) {
  const Problem p(c, tables.oracle());
  const std::vector<float> expected = p.run(tables.oracle(), 1);
  check(is_right(p, expected, tables.oracle()), "attention is right" + c.name());
  for (const Kernels* k : tables) {
    for (int step : {1, 2, 3, 5, c.queries}) {
      const std::vector<float> out = p.run(*k, step);
      bool ok = true;
      for (int r = 0; r < c.queries; ++r) {
        ok = ok && same(&out[r * p.ld()], &expected[r * p.ld()], c.head_dim);
        for (int i = 0; r + 1 < c.queries && i < 3; ++i) ok = ok && is_poison(out[r * p.ld() + c.head_dim + i]);
      }
      check(ok, std::string(k->name) + " attend" + c.name() + " step " + std::to_string(step));
    }
  }
}

// The smallest ring that holds what the queries see gives the bits of a cache that holds everything.
void check_ring(const Tables& tables, const Case& c) {
  const int seen = c.window + c.queries - 1, ring = (seen + kSpan - 1) / kSpan * kSpan;
  if (ring >= c.length) return;
  const Problem whole(c, tables.oracle()), p(c, tables.oracle(), ring);
  const std::vector<float> expected = whole.run(tables.oracle(), c.queries);
  for (const Kernels* k : tables) {
    const std::vector<float> out = p.run(*k, c.queries);
    bool ok = true;
    for (int r = 0; r < c.queries; ++r) ok = ok && same(&out[r * p.ld()], &expected[r * p.ld()], c.head_dim);
    check(ok, std::string(k->name) + " ring of " + std::to_string(ring) + c.name());
  }
}

// Scores so large that the running maximum must save the exponential, and one infinite key: NaN, not a crash.
void check_wild_scores(const Tables& tables) {
  Problem p({PJ_F32, 16, 70, 3, 0, 1}, tables.oracle());
  for (float magnitude : {1e4f, 1e20f, std::numeric_limits<float>::infinity()}) {
    std::vector<float> key(16, 1.0f), value(16, 1.0f);
    key[3] = magnitude;
    for (int position : {5, 40}) tables.oracle().store_kv(p.cache.head, 16, position, key.data(), value.data());
    const std::vector<float> expected = p.run(tables.oracle(), 1);
    for (const Kernels* k : tables) {
      const std::vector<float> out = p.run(*k, 3);
      bool ok = true;
      for (int r = 0; r < 3; ++r) ok = ok && same(&out[r * p.ld()], &expected[r * p.ld()], 16);
      check(ok, std::string(k->name) + " attend with wild scores");
    }
  }
}

// Scores that climb from span to span by less and by more than what the maximum may lie behind.
void check_climbing_scores(const Tables& tables, pj_kind kind, float step) {
  constexpr int kDim = 16, kLength = 300;
  Problem p({kind, kDim, kLength, 5, 0, 1}, tables.oracle());
  Random random(17);
  for (int r = 0; r < p.shape.queries; ++r) {
    for (int d = 0; d < kDim; ++d) p.q[r * p.ld() + d] = d == 0 ? 1.0f : 0.0f;
  }
  for (int i = 0; i < kLength; ++i) {
    std::vector<float> key(kDim), value(kDim);
    for (float& x : value) x = random.normal();
    key[0] = static_cast<float>(i / kSpan) * step + 0.5f * random.normal();
    tables.oracle().store_kv(p.cache.head, kDim, i, key.data(), value.data());
  }
  const std::vector<float> expected = p.run(tables.oracle(), 1);
  const std::string name = " climbing by " + std::to_string(step) + p.shape.name();
  check(is_right(p, expected, tables.oracle()), "attention is right" + name);
  for (const Kernels* k : tables) check(same(p.run(*k, 5), expected), std::string(k->name) + name);
}

// What store_kv writes, and that it writes nothing else.
void check_store(const Tables& tables, pj_kind kind, int dim) {
  constexpr int kPosition = 19, kPositions = 32;
  const size_t bytes = kv_element_bytes(kind);
  Random random(8);
  std::vector<float> key(dim), value(dim);
  const float special[] = {0.0f,
                           -0.0f,
                           65504.0f,
                           65519.0f,
                           65520.0f,
                           1e30f,
                           5.9e-8f,
                           2.98e-8f,
                           2.99e-8f,
                           6.1e-5f,
                           std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::quiet_NaN(),
                           1e-30f,
                           -1e-6f};
  for (int d = 0; d < dim; ++d) {
    key[d] = d % 2 ? special[d / 2 % 14] : random.normal();
    value[d] = std::ldexp(random.normal(), random.below(60) - 30);
  }
  float largest_value = 0.0f;
  for (float x : value) largest_value = std::fmax(largest_value, std::fabs(x));
  if (kind == PJ_I8) std::replace_if(key.begin(), key.end(), [](float x) { return !(std::fabs(x) < 1e5f); }, 1.0f);
  std::vector<uint8_t> first_keys, first_values;
  for (const Kernels* k : tables) {
    std::vector<uint8_t> keys(kPositions * kv_row_bytes(kind, dim), 0xee), values(keys);
    std::vector<float> scales(kPositions, -1.0f), value_scales(scales);
    const KvHead head = {keys.data(), values.data(), kind, kPositions, scales.data(), value_scales.data()};
    k->store_kv(head, dim, kPosition, key.data(), value.data());
    if (first_keys.empty()) first_keys = keys, first_values = values;
    check(keys == first_keys && values == first_values, std::string(k->name) + " store_kv like scalar");
    bool ok = true;
    for (int i = 0; i < kPositions; ++i) ok = ok && (scales[i] >= 0) == (kind == PJ_I8 && i == kPosition);
    std::vector<uint8_t> key_is_ours(keys.size()), value_is_ours(keys.size());
    const int stored = static_cast<int>(kv_row_bytes(kind, dim) / bytes);  // dimensions, filled up
    for (int d = 0; d < stored; ++d) {
      std::fill_n(&key_is_ours[key_at(head, dim, kPosition, d) * bytes], bytes, uint8_t{1});
      std::fill_n(&value_is_ours[value_at(head, dim, kPosition, d) * bytes], bytes, uint8_t{1});
    }
    for (size_t i = 0; i < keys.size(); ++i) {
      ok = ok && (keys[i] == 0xee || key_is_ours[i]) && (values[i] == 0xee || value_is_ours[i]);
    }
    for (int d = dim; d < stored; ++d) {
      ok = ok && keys[key_at(head, dim, kPosition, d)] == 128 && values[value_at(head, dim, kPosition, d)] == 128;
    }
    for (int d = 0; d < dim; ++d) {
      const float got = value_of(head, dim, kPosition, d, tables.oracle());
      const float half_step = 0.5001f * largest_value / 127;
      const float tolerance = kind == PJ_I8    ? half_step
                              : kind == PJ_F32 ? 0.0f
                                               : std::fmax(std::fabs(value[d]) * 0x1p-11f, 0x1p-25f);
      ok = ok && (std::fabs(value[d]) >= 65520.0f || std::fabs(got - value[d]) <= tolerance);
    }
    check(ok, std::string(k->name) + " store_kv in its place");
  }
}

}  // namespace

void test_attend(const Tables& tables) {
  for (pj_kind kind : {PJ_F16, PJ_F32, PJ_I8}) {
    for (int dim : {2, 10, 64, 96, 128, 18, 258}) {
      check_store(tables, kind, dim);
      for (int length : {1, 15, 16, 17, 64, 65, 150}) {
        for (int queries : {1, 4, 9}) {
          for (int window : {0, 1, 5, 16, 70}) {
            if (queries <= length) check_attend(tables, {kind, dim, length, queries, window, 1});
          }
        }
        check_attend(tables, {kind, dim, length, 3, 0, 3});
      }
      for (int length : {65, 150, 400}) {
        for (int queries : {1, 9, 49}) {
          for (int window : {1, 5, 16, 70, 144}) check_ring(tables, {kind, dim, length, queries, window, 1});
        }
      }
    }
  }
  check_wild_scores(tables);
  for (pj_kind kind : {PJ_F16, PJ_F32, PJ_I8}) {
    for (float step : {-40.0f, 3.0f, 12.0f, 17.0f, 60.0f}) check_climbing_scores(tables, kind, step);
  }
}

}  // namespace penjing
