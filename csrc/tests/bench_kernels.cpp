// Times of the kernels at the shapes of SmolLM2-135M, one thread. Every answer is checked against the scalar oracle
// before its time is printed. PENJING_ISA chooses the table; an argument picks benches by a part of their name.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "tests/random_matrix.h"

namespace {

using penjing::Kernels;
using penjing::Matrix;
using penjing::Random;

double best_seconds(const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  const auto end = Clock::now() + std::chrono::milliseconds(300);
  for (int i = 0; i < 5 || Clock::now() < end; ++i) {
    const auto start = Clock::now();
    run();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

void print(const std::string& name, double macs, double bytes, double seconds) {
  std::printf("%-44s %9.1f us %8.1f GMAC/s %7.1f GB/s\n", name.c_str(), seconds * 1e6, macs / seconds * 1e-9,
              bytes / seconds * 1e-9);
}

void require_same(const std::string& name, const std::vector<float>& a, const std::vector<float>& b) {
  if (std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0) return;
  std::printf("%s: differs from scalar\n", name.c_str());
  std::exit(1);
}

// `copies` matrices in turn, so that together they are larger than the last cache (decode), or one (prefill).
void bench_codes(const Kernels& k, const Kernels& oracle, int rows, int cols, int bits, int group, bool symmetric,
                 int columns, size_t footprint, pj_levels levels = PJ_UNIFORM, int scale_bytes = 2) {
  Random random(1);
  const penjing::RandomMatrix first(random, rows, cols, bits, group, symmetric, false, levels, scale_bytes);
  const int copies = std::max<int>(1, static_cast<int>(footprint / first.bytes()));
  std::vector<penjing::RandomMatrix> matrices(copies, first);
  for (auto& m : matrices) m.relink();
  const penjing::RandomColumns x(random, oracle, columns, cols, group);
  const Matrix& w = matrices[0].matrix;
  const size_t ld = static_cast<size_t>(w.num_panels) * PJ_LANES;
  std::vector<float> y(ld * columns), expected(ld * columns);
  penjing::AlignedVector<uint8_t> scratch(penjing::linear_scratch_bytes(w));
  oracle.linear_codes(w, 0, w.num_panels, x.quantized, columns, expected.data(), ld, scratch.data());
  const double seconds = best_seconds([&] {
    for (int i = 0; i < copies; ++i) {
      k.linear_codes(matrices[i].matrix, 0, w.num_panels, x.quantized, columns, y.data(), ld, scratch.data());
    }
  });
  const std::string name = std::string(k.name) + " codes " + std::to_string(rows) + "x" + std::to_string(cols) + " " +
                           (levels == PJ_TERNARY ? "ternary"
                            : levels == PJ_BOOK  ? "book"
                                                 : "b") +
                           (levels == PJ_TERNARY ? "" : std::to_string(bits)) + " g" + std::to_string(group) +
                           (scale_bytes == 1 ? " s8" : "") + (symmetric ? " sym x" : " asym x") +
                           std::to_string(columns);
  require_same(name, y, expected);
  print(name, 1.0 * rows * cols * columns * copies, static_cast<double>(first.bytes() * copies), seconds);
}

void bench_float(const Kernels& k, const Kernels& oracle, int rows, int cols, pj_kind kind, int columns) {
  Random random(2);
  const penjing::RandomMatrix m(random, rows, cols, kind, false);
  const size_t ld = static_cast<size_t>(m.matrix.num_panels) * PJ_LANES;
  std::vector<float> x(static_cast<size_t>(columns) * cols), y(ld * columns), expected(ld * columns);
  for (float& value : x) value = random.normal();
  oracle.linear_float(m.matrix, 0, m.matrix.num_panels, x.data(), columns, expected.data(), ld);
  const double seconds =
      best_seconds([&] { k.linear_float(m.matrix, 0, m.matrix.num_panels, x.data(), columns, y.data(), ld); });
  const std::string name = std::string(k.name) +
                           (kind == PJ_F32   ? " f32 "
                            : kind == PJ_F16 ? " f16 "
                                             : " bf16 ") +
                           std::to_string(rows) + "x" + std::to_string(cols) + " x" + std::to_string(columns);
  require_same(name, y, expected);
  print(name, 1.0 * rows * cols * columns, static_cast<double>(m.bytes()), seconds);
}

// The last `queries` of `context` positions, heads of 64.
void bench_attend(const Kernels& k, const Kernels& oracle, int context, int queries, pj_kind kind) {
  constexpr int kHead = 64;
  Random random(3);
  const penjing::RandomCache cache(random, oracle, kind, kHead, context);
  std::vector<float> q(static_cast<size_t>(queries) * kHead), y(q.size()), expected(q.size());
  for (float& value : q) value = random.normal();
  std::vector<int32_t> positions(queries);
  for (int r = 0; r < queries; ++r) positions[r] = context - queries + r;
  std::vector<uint8_t> scratch(penjing::attend_scratch_bytes(kHead, queries));
  const auto run = [&](const Kernels& table, std::vector<float>& out) {
    table.attend(cache.head, kHead, q.data(), kHead, positions.data(), queries, 0, out.data(), kHead, scratch.data());
  };
  run(oracle, expected);
  const double seconds = best_seconds([&] { run(k, y); });
  const std::string name = std::string(k.name) + " attend " +
                           (kind == PJ_I8    ? "i8"
                            : kind == PJ_F16 ? "f16"
                                             : "f32") +
                           " context " + std::to_string(context) + " queries " + std::to_string(queries);
  require_same(name, y, expected);
  double pairs = 0;
  for (int position : positions) pairs += position + 1;
  print(name, 2.0 * kHead * pairs, 2.0 * kHead * context * static_cast<double>(penjing::kv_element_bytes(kind)),
        seconds);
}

void bench_quantize(const Kernels& k, int columns, int cols, int group) {
  Random random(4);
  penjing::RandomColumns x(random, k, columns, cols, group);
  const double seconds = best_seconds([&] { k.quantize_columns(x.x.data(), columns, cols, group, x.quantized); });
  print(std::string(k.name) + " quantize " + std::to_string(columns) + "x" + std::to_string(cols) + " g" +
            std::to_string(group),
        0, 4.0 * columns * cols, seconds);
}

void bench_activate(const Kernels& k, pj_activation act, const char* label) {
  Random random(5);
  std::vector<float> gate(1536), up(1536), y(1536);
  for (float& value : gate) value = random.normal();
  const double seconds = best_seconds([&] { k.activate(act, gate.data(), up.data(), 1536, y.data()); });
  print(std::string(k.name) + " " + label + " 1536", 1536, 3 * 4 * 1536, seconds);
}

}  // namespace

int main(int argc, char** argv) {
  const Kernels& k = penjing::kernels();
  int num_tables;
  const Kernels& oracle = *penjing::available_kernels(&num_tables)[0];
  const std::string only = argc > 1 ? argv[1] : "";
  const auto wanted = [&](const char* name) { return only.empty() || only == name; };
  constexpr size_t kBeyondCache = 96u << 20;
  int32_t sink;
  if (wanted("probe")) {
    uint64_t macs = 0;
    const double seconds = best_seconds([&] { macs = k.probe_int8(2000, &sink); });
    print(std::string(k.name) + " probe_int8", static_cast<double>(macs), 0, seconds);
    std::vector<uint8_t> buffer(256u << 20, 1);
    print(std::string(k.name) + " probe_read 256 MB", 0, static_cast<double>(buffer.size()),
          best_seconds([&] { sink = static_cast<int32_t>(k.probe_read(buffer.data(), buffer.size())); }));
  }
  const int shapes[][2] = {{576, 576}, {1536, 576}, {576, 1536}};
  if (wanted("decode")) {
    for (int bits : {1, 2, 3, 4, 5, 6, 8}) bench_codes(k, oracle, 1536, 576, bits, 64, true, 1, kBeyondCache);
    bench_codes(k, oracle, 1536, 576, 2, 64, true, 1, kBeyondCache, PJ_TERNARY);
    for (int bits : {2, 3, 4}) bench_codes(k, oracle, 1536, 576, bits, 64, true, 1, kBeyondCache, PJ_BOOK);
    for (int scale_bytes : {2, 1}) {
      for (int group : {32, 64}) {
        bench_codes(k, oracle, 1536, 576, 3, group, true, 1, kBeyondCache, PJ_BOOK, scale_bytes);
      }
    }
    for (int group : {32, 96, 576}) bench_codes(k, oracle, 1536, 576, 4, group, true, 1, kBeyondCache);
    bench_codes(k, oracle, 1536, 576, 4, 64, false, 1, kBeyondCache);
    bench_codes(k, oracle, 49152, 576, 4, 64, true, 1, kBeyondCache);
    for (int columns : {1, 2, 4, 8}) bench_codes(k, oracle, 1536, 576, 4, 64, true, columns, 0);
  }
  if (wanted("prefill")) {
    for (const auto& shape : shapes) {
      for (int group : {32, 64}) bench_codes(k, oracle, shape[0], shape[1], 4, group, true, 512, 0);
    }
    bench_codes(k, oracle, 1536, 576, 4, 576, true, 512, 0);
    bench_codes(k, oracle, 1536, 576, 4, 64, false, 512, 0);
    for (int bits : {1, 3, 8}) bench_codes(k, oracle, 1536, 576, bits, 64, true, 512, 0);
    bench_codes(k, oracle, 1536, 576, 2, 64, true, 512, 0, PJ_TERNARY);
    bench_codes(k, oracle, 1536, 576, 4, 64, true, 512, 0, PJ_BOOK);
    for (int scale_bytes : {2, 1}) bench_codes(k, oracle, 1536, 576, 3, 32, true, 512, 0, PJ_BOOK, scale_bytes);
    for (int columns : {3, 8, 16, 128}) bench_codes(k, oracle, 1536, 576, 4, 64, true, columns, 0);
  }
  if (wanted("float")) {
    for (pj_kind kind : {PJ_F32, PJ_F16, PJ_BF16}) {
      for (int columns : {1, 64}) bench_float(k, oracle, 1536, 576, kind, columns);
    }
  }
  if (wanted("attend")) {
    for (pj_kind kind : {PJ_I8, PJ_F16, PJ_F32}) {
      for (int queries : {1, 3, 512}) bench_attend(k, oracle, 512, queries, kind);
      bench_attend(k, oracle, 2048, 256, kind);
    }
  }
  if (wanted("rest")) {
    for (int group : {32, 64}) bench_quantize(k, 16, 576, group);
    bench_activate(k, PJ_SILU, "silu");
    bench_activate(k, PJ_GELU, "gelu");
  }
  return 0;
}
