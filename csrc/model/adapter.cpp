#include "model/adapter.h"

#include <string>

#include "model/pass.h"
#include "ops/error.h"

namespace penjing {
namespace {

constexpr pj_lora pj_adapter_layer::* kLoras[kNumParts] = {
    &pj_adapter_layer::q,    &pj_adapter_layer::k,  &pj_adapter_layer::v,   &pj_adapter_layer::o,
    &pj_adapter_layer::gate, &pj_adapter_layer::up, &pj_adapter_layer::down};
constexpr const char* kNames[kNumParts] = {"q", "k", "v", "o", "gate", "up", "down"};
// Matrices that read one input have places of their own for what A makes of it.
constexpr int kPlaces[kNumParts] = {0, 1, 2, 0, 0, 1, 0};

Lora check_lora(const std::string& name, const Matrix& base, const pj_lora& in) {
  if (in.rank == 0) return {};
  if (in.rank < 0 || in.rank > PJ_MAX_RANK) {
    fail(PJ_BAD_ARGUMENT, "%s: rank %d, where at most %d are known", name.c_str(), in.rank, PJ_MAX_RANK);
  }
  if (!present(base)) fail(PJ_BAD_ARGUMENT, "%s: an addition to a matrix that is absent", name.c_str());
  if (in.kind != PJ_F32 && in.kind != PJ_F16) fail(PJ_BAD_ARGUMENT, "%s: kind %d", name.c_str(), in.kind);
  if (!in.a || reinterpret_cast<uintptr_t>(in.a) % (in.kind == PJ_F32 ? 4 : 2)) {
    fail(PJ_BAD_ARGUMENT, "%s: A is missing or not aligned", name.c_str());
  }
  pj_matrix b{};
  b.data = in.b, b.kind = in.kind, b.rows = base.rows, b.cols = in.rank;
  return {in.a, check_matrix(name.c_str(), b), in.rank};
}

int part_of(const Layer& layer, const Matrix& matrix) {
  int part = 0;
  while (&(layer.*kParts[part]) != &matrix) ++part;
  return part;
}

}  // namespace

Adapter check_adapter(const Model& model, const pj_adapter_layer* layers) {
  if (!layers) fail(PJ_BAD_ARGUMENT, "no layers");
  Adapter adapter{model, std::vector<AdapterLayer>(model.layers.size())};
  for (size_t n = 0; n < model.layers.size(); ++n) {
    for (int part = 0; part < kNumParts; ++part) {
      const std::string name = "layers." + std::to_string(n) + "." + kNames[part];
      adapter.layers[n].parts[part] = check_lora(name, model.layers[n].*kParts[part], layers[n].*kLoras[part]);
    }
  }
  return adapter;
}

// Calls visit(lora, columns, place) for each run of neighbouring columns of this block that have an adapter in common
// with an addition to the matrix; place: what A makes of those columns, [column][rank].
template <class Visit>
void Pass::for_each_addition(const Matrix& m, Visit visit) const {
  const int part = part_of(model_.layers[layer_], m);
  float* places = work_.projected + static_cast<size_t>(kPlaces[part]) * work_.columns * PJ_MAX_RANK;
  for (int begin = 0, end; begin < num_columns_; begin = end) {
    const Adapter* adapter = columns_[begin].adapter;
    for (end = begin + 1; end < num_columns_ && columns_[end].adapter == adapter;) ++end;
    if (!adapter) continue;
    const Lora& lora = adapter->layers[layer_].parts[part];
    if (lora.rank) visit(lora, Range{begin, end}, places + static_cast<size_t>(begin) * PJ_MAX_RANK);
  }
}

// A x of this thread's columns, for each reader of x [column][cols].
void Pass::project(const float* x, int cols, Matrices readers, Range columns) {
  for (const Matrix* m : readers) {
    for_each_addition(*m, [&](const Lora& lora, Range run, float* place) {
      const Range own = intersect(run, columns);
      if (own.empty()) return;
      kernels_.row_dots(lora.a, lora.b.kind, lora.rank, cols, x + static_cast<size_t>(own.begin) * cols, own.size(),
                        place + static_cast<size_t>(own.begin - run.begin) * lora.rank);
    });
  }
}

// y += B (A x) for panels of a matrix; y [column][padded rows] starts at the matrix's first panel.
void Pass::add_projected(const Matrix& m, Range panels, float* y) {
  const size_t ld_y = static_cast<size_t>(m.num_panels) * PJ_LANES;
  for_each_addition(m, [&](const Lora& lora, Range run, const float* place) {
    const int tile = kLogitTile / (PJ_LANES * run.size());
    for (int begin = panels.begin; begin < panels.end; begin += tile) {
      const Matrix b = panels_of(lora.b, begin, std::min(begin + tile, panels.end));
      const int ld = b.num_panels * PJ_LANES;
      kernels_.linear_float(b, 0, b.num_panels, place, run.size(), buffers_.logits, ld);
      for (int c = 0; c < run.size(); ++c) {
        float* out = y + static_cast<size_t>(run.begin + c) * ld_y + begin * PJ_LANES;
        kernels_.add_scaled(column(buffers_.logits, ld, c), 1.0f, b.rows, out);
      }
    }
  });
}

}  // namespace penjing
