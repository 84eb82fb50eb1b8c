// Norms, rotary embedding, activations, sums and probes: accuracy of the scalar kernels in float64, then the same
// bits from every ISA.
#include <cmath>
#include <limits>

#include "tests/check.h"
#include "tests/random_matrix.h"

namespace penjing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
constexpr int kSizes[] = {1, 2, 15, 16, 17, 33, 100, 576};

std::vector<float> normals(Random& random, int size) {
  std::vector<float> out(size);
  for (float& value : out) value = random.normal();
  return out;
}

void check_norms(const Tables& tables, int size) {
  Random random(static_cast<uint64_t>(size));
  const std::vector<float> x = normals(random, size), weight = normals(random, size), bias = normals(random, size);
  double sum = 0, squares = 0, off = 0;
  for (float value : x) sum += value, squares += static_cast<double>(value) * value;
  for (float value : x) off += (value - sum / size) * (value - sum / size);
  std::vector<float> rms(size), layer(size), plain(size);
  tables.oracle().rms_norm(x.data(), weight.data(), size, 1e-5f, rms.data());
  tables.oracle().layer_norm(x.data(), weight.data(), bias.data(), size, 1e-5f, layer.data());
  tables.oracle().layer_norm(x.data(), weight.data(), nullptr, size, 1e-5f, plain.data());
  bool ok = true;
  // each lane sums size / 16 terms, the tree 4 more; then a division, a root and two products
  const double relative = (size / 16 + 12) * kEpsilon;
  for (int i = 0; i < size; ++i) {
    const double by_rms = x[i] / std::sqrt(squares / size + 1e-5) * weight[i];
    ok = ok && std::fabs(rms[i] - by_rms) <= relative * std::fabs(by_rms);
    const double inverse = 1 / std::sqrt(off / size + 1e-5);  // magnifies the rounding of the mean
    const double by_layer = (x[i] - sum / size) * inverse * weight[i];
    const double bound =
        relative * ((6 * inverse + 1) * std::fabs(weight[i]) + std::fabs(by_layer) + std::fabs(bias[i]));
    ok = ok && std::fabs(layer[i] - (by_layer + bias[i])) <= bound && std::fabs(plain[i] - by_layer) <= bound;
  }
  check(ok, "norms are right for " + std::to_string(size));
  for (const Kernels* k : tables) {
    std::vector<float> y = poisoned(size), z = poisoned(size), v = x;
    k->rms_norm(x.data(), weight.data(), size, 1e-5f, y.data());
    check(same(y, rms), std::string(k->name) + " rms_norm " + std::to_string(size));
    k->rms_norm(v.data(), weight.data(), size, 1e-5f, v.data());
    check(same(v, rms), std::string(k->name) + " rms_norm in place " + std::to_string(size));
    k->layer_norm(x.data(), weight.data(), bias.data(), size, 1e-5f, y.data());
    k->layer_norm(x.data(), weight.data(), nullptr, size, 1e-5f, z.data());
    check(same(y, layer) && same(z, plain), std::string(k->name) + " layer_norm " + std::to_string(size));
  }
}

void check_rope(const Tables& tables, int dim) {
  Random random(static_cast<uint64_t>(dim));
  const std::vector<float> head = normals(random, dim), cosine = normals(random, dim / 2),
                           sine = normals(random, dim / 2);
  for (const Kernels* k : tables) {
    std::vector<float> y = head;
    k->rope(y.data(), cosine.data(), sine.data(), dim);
    bool ok = true;
    for (int j = 0; j < dim / 2; ++j) {
      const float a = head[j], b = head[j + dim / 2];
      ok = ok && same(y[j], std::fma(-b, sine[j], a * cosine[j]));
      ok = ok && same(y[j + dim / 2], std::fma(a, sine[j], b * cosine[j]));
    }
    check(ok, std::string(k->name) + " rope " + std::to_string(dim));
  }
}

double exact_activation(pj_activation act, double x) {
  if (act == PJ_SILU) return x / (1 + std::exp(-x));
  if (act == PJ_GELU) return x / 2 * std::erfc(-x / std::sqrt(2.0));
  return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

// Units in the last place; results below 2^-100 are held to its unit, 1e-37: there e^-x overflows.
double error_ulps(float got, double exact) {
  const double magnitude = std::fmax(std::fabs(exact), 0x1p-100);
  return std::fabs(got - exact) / std::ldexp(1.0, std::ilogb(magnitude) - 23);
}

// tanh's argument has a rounding of its own, which its exponential multiplies by the argument: allow for it.
double allowed_ulps(pj_activation act, double x) {
  const double argument = act == PJ_GELU_TANH ? 1.6 * std::fabs(x + 0.044715 * x * x * x)
                          : act == PJ_GELU    ? x * x / 2
                                              : 0;
  return 5 + (x < 0 ? 4 * argument : 0);
}

void check_activations(const Tables& tables) {
  std::vector<float> x;
  for (int i = -4000; i <= 4000; ++i) x.push_back(static_cast<float>(i) * 0.005f);
  for (float value : {0.0f, -0.0f, 1e-44f, 1e-30f, 88.0f, 89.0f, -87.5f, -88.8f, -103.9f, -104.1f, 1e30f}) {
    x.push_back(value);
  }
  const size_t finite = x.size();
  for (float value : {-1e30f, kInfinity, -kInfinity, kNan}) x.push_back(value);
  const int size = static_cast<int>(x.size());
  Random random(3);
  const std::vector<float> up = normals(random, size);
  for (pj_activation act : {PJ_SILU, PJ_GELU, PJ_GELU_TANH}) {
    std::vector<float> plain(size), gated(size);
    tables.oracle().activate(act, x.data(), nullptr, size, plain.data());
    tables.oracle().activate(act, x.data(), up.data(), size, gated.data());
    bool ok = std::isnan(plain[size - 1]);
    for (size_t i = 0; i < finite; ++i) {
      ok = ok && error_ulps(plain[i], exact_activation(act, x[i])) <= allowed_ulps(act, x[i]);
    }
    for (int i = 0; i < size; ++i) ok = ok && same(gated[i], plain[i] * up[i]);
    check(ok, "activation " + std::to_string(act) + " is right");
    for (const Kernels* k : tables) {
      std::vector<float> y = x, z = poisoned(size);
      k->activate(act, y.data(), up.data(), size, y.data());
      k->activate(act, x.data(), nullptr, size, z.data());
      check(same(y, gated) && same(z, plain), std::string(k->name) + " activation " + std::to_string(act));
    }
  }
}

void check_add_scaled(const Tables& tables, int size) {
  Random random(static_cast<uint64_t>(size));
  const std::vector<float> x = normals(random, size), before = normals(random, size);
  for (const Kernels* k : tables) {
    std::vector<float> y = before;
    k->add_scaled(x.data(), 0.3f, size, y.data());
    bool ok = true;
    for (int i = 0; i < size; ++i) ok = ok && same(y[i], std::fma(0.3f, x[i], before[i]));
    check(ok, std::string(k->name) + " add_scaled " + std::to_string(size));
  }
}

// Like a norm's sums: lanes of every 16th input, then the tree; whatever tiles rows and columns fall into.
void check_row_dots(const Tables& tables, int rows, int cols) {
  Random random(static_cast<uint64_t>(cols));
  const int columns = 7;
  const std::vector<float> x = normals(random, columns * cols), wide = normals(random, rows * cols);
  std::vector<uint16_t> half(wide.size());
  for (uint16_t& value : half) value = random.half();
  for (pj_kind kind : {PJ_F32, PJ_F16}) {
    const void* weights = kind == PJ_F32 ? static_cast<const void*>(wide.data()) : half.data();
    std::vector<float> expected(rows * columns);
    tables.oracle().row_dots(weights, kind, rows, cols, x.data(), columns, expected.data());
    bool ok = true;
    for (int c = 0; c < columns && kind == PJ_F32; ++c) {
      for (int r = 0; r < rows; ++r) {
        double exact = 0, size = 0;
        for (int i = 0; i < cols; ++i) {
          const double product = static_cast<double>(wide[r * cols + i]) * x[c * cols + i];
          exact += product, size += std::fabs(product);
        }
        ok = ok && std::fabs(expected[c * rows + r] - exact) <= (cols / 16 + 5) * kEpsilon * size;
      }
    }
    const std::string what = " row_dots " + std::to_string(rows) + " x " + std::to_string(cols);
    check(ok, "oracle" + what);
    for (const Kernels* k : tables) {
      for (int together : {1, 3, columns}) {
        std::vector<float> y = poisoned(rows * columns);
        for (int c = 0; c < columns; c += together) {
          const int now = std::min(together, columns - c);
          k->row_dots(weights, kind, rows, cols, x.data() + c * cols, now, y.data() + c * rows);
        }
        check(same(y, expected), k->name + what);
      }
    }
  }
}

void check_probes(const Tables& tables) {
  std::vector<uint8_t> buffer(5000);
  for (size_t i = 0; i < buffer.size(); ++i) buffer[i] = static_cast<uint8_t>(i * 7);
  const uint64_t checksum = tables.oracle().probe_read(buffer.data(), buffer.size());
  for (const Kernels* k : tables) {
    int32_t sink = 0;
    check(k->probe_read(buffer.data(), buffer.size()) == checksum, std::string(k->name) + " probe_read");
    const uint64_t macs = k->probe_int8(3, &sink);
    check(macs > 0 && k->probe_int8(6, &sink) == 2 * macs, std::string(k->name) + " probe_int8");
  }
}

}  // namespace

void test_vectors(const Tables& tables) {
  for (int size : kSizes) {
    check_norms(tables, size);
    check_add_scaled(tables, size);
    for (int rows : {1, 5, 16, 23}) check_row_dots(tables, rows, size);
  }
  for (int dim : {2, 10, 16, 32, 34, 64, 96, 128}) check_rope(tables, dim);
  check_activations(tables);
  check_probes(tables);
}

}  // namespace penjing
