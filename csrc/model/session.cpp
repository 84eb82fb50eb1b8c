#include "model/session.h"

#include <algorithm>
#include <cmath>

#include "ops/error.h"

namespace penjing {
namespace {

size_t times(size_t a, size_t b) {
  size_t product;
  if (__builtin_mul_overflow(a, b, &product)) throw std::bad_alloc();
  return product;
}

template <class Visit>
void for_each_matrix(const Model& model, Visit visit) {
  visit(model.head);
  for (const Layer& layer : model.layers) {
    for (const Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      if (present(*m)) visit(*m);
    }
  }
}

}  // namespace

Session::Session(const Model& model_, int max_context_, int num_sequences_, int num_threads, pj_kind kv_kind_,
                 int way_back_)
    : model(model_),
      kernels(penjing::kernels()),
      max_context(max_context_),
      num_sequences(num_sequences_),
      kv_kind(kv_kind_),
      way_back(way_back_),
      team(num_threads),
      blocks(num_threads > 1 && num_threads * kLeastApart <= kApartColumns ? static_cast<size_t>(num_threads) : 1),
      threads(static_cast<size_t>(num_threads)),
      ropes(model_.ropes.size()),
      kv(times(times(static_cast<size_t>(num_sequences_), model_.layers.size()),
               static_cast<size_t>(model_.num_kv_heads))),
      lengths(static_cast<size_t>(num_sequences_)),
      next_lengths(lengths),
      least(lengths),
      adapters(static_cast<size_t>(num_sequences_)) {
  lay_out();
  arena_.allocate();
  lay_out();
  fill_rope_tables();
}

// Runs twice, see Arena. Everything that is used in one layer lies together; the cache, which grows, comes last.
void Session::lay_out() {
  const int num_queries = std::max(kQueryBlock, model.queries_per_kv());
  size_t scratch_bytes = attend_scratch_bytes(model.head_dim, num_queries);
  for_each_matrix(model, [&](const Matrix& m) { scratch_bytes = std::max(scratch_bytes, linear_scratch_bytes(m)); });

  const int apart = (kApartColumns + team.size() - 1) / team.size();
  for (Block& block : blocks) block = take_block(&block == blocks.data() ? kBlockColumns : apart);
  for (ThreadBuffers& thread : threads) {
    thread.own = take_workspace(kOwnColumns);
    thread.scratch = arena_.take<uint8_t>(scratch_bytes);
    thread.logits = arena_.take<float>(kLogitTile);
    thread.positions = arena_.take<int32_t>(num_queries);
  }
  take_rope_tables();
  call_columns = arena_.take<Column>(times(static_cast<size_t>(num_sequences), static_cast<size_t>(max_context)));
  folded = arena_.take<Column>(can_go_apart() ? kApartColumns : 0);
  take_cache();
}

Block Session::take_block(int num_columns) {
  const size_t columns = static_cast<size_t>(num_columns), inner = static_cast<size_t>(model.intermediate_size);
  const size_t q_rows = padded(model.q_size()), kv_rows = padded(model.kv_size());
  const size_t hidden_rows = padded(model.hidden_size), inner_rows = padded(model.intermediate_size);
  Block out;
  out.work = take_workspace(num_columns);
  out.q = arena_.take<float>(columns * q_rows);
  out.k = arena_.take<float>(columns * kv_rows);
  out.v = arena_.take<float>(columns * kv_rows);
  out.attended = arena_.take<float>(columns * static_cast<size_t>(model.q_size()));
  out.gate = arena_.take<float>(columns * inner_rows);
  out.up = arena_.take<float>(columns * inner_rows);
  // each entry is written by who has read its gate, so both may lie in one place where they lie alike
  out.activated = inner == inner_rows ? out.gate : arena_.take<float>(columns * inner);
  out.attn_out = arena_.take<float>(columns * hidden_rows);
  out.mlp_out = arena_.take<float>(columns * hidden_rows);
  return out;
}

Workspace Session::take_workspace(int num_columns) {
  const size_t columns = static_cast<size_t>(num_columns);
  size_t codes = 0, groups = 0;
  for_each_matrix(model, [&](const Matrix& m) {
    codes = std::max(codes, static_cast<size_t>(m.num_groups) * m.stride);
    groups = std::max(groups, static_cast<size_t>(m.num_groups));
  });
  Workspace out;
  out.columns = num_columns;
  out.x = arena_.take<float>(columns * model.hidden_size);
  out.normed = arena_.take<float>(columns * model.hidden_size);
  for (QuantizedColumns& quantized : out.quantized) quantized = take_columns(columns, codes, groups);
  const size_t head_groups = static_cast<size_t>(model.head.num_groups);
  out.head = take_columns(2 * columns, head_groups * model.head.stride, head_groups);
  out.projected = arena_.take<float>(kMaxVariants * columns * PJ_MAX_RANK);
  return out;
}

QuantizedColumns Session::take_columns(size_t columns, size_t codes, size_t groups) {
  return {arena_.take<int8_t>(columns * codes), arena_.take<float>(columns * groups),
          arena_.take<int32_t>(columns * groups), static_cast<int>(columns)};
}

void Session::take_rope_tables() {
  for (size_t i = 0; i < ropes.size(); ++i) {
    const size_t half = model.ropes[i].inv_freq.size();
    float* cos = arena_.take<float>(times(half, static_cast<size_t>(max_context)));
    float* sin = arena_.take<float>(times(half, static_cast<size_t>(max_context)));
    ropes[i] = RopeTable{cos, sin, static_cast<int>(2 * half)};
  }
}

// Cut back by way_back tokens, the first one that comes then sees window - 1 positions before it.
int Session::cache_positions(int window) const {
  const int64_t all = padded(max_context), needed = int64_t{window} - 1 + way_back;
  return static_cast<int>(window > 0 ? std::min(all, (needed + kSpan - 1) / kSpan * kSpan) : all);
}

void Session::take_cache() {
  const size_t heads = static_cast<size_t>(model.num_kv_heads);
  for (size_t i = 0; i < kv.size(); ++i) {
    KvHead& head = kv[i];
    head.kind = kv_kind;
    head.capacity = cache_positions(model.layers[i / heads % model.layers.size()].window);
    if (head.capacity < max_context) kept_whole_ = std::min(kept_whole_, head.capacity);
    const size_t positions = static_cast<size_t>(head.capacity), scales = kv_kind == PJ_I8 ? positions : 0;
    const size_t bytes = times(positions, kv_row_bytes(kv_kind, model.head_dim));
    head.keys = arena_.take<uint8_t>(bytes);
    head.values = arena_.take<uint8_t>(bytes);
    head.key_scales = arena_.take<float>(scales);
    head.value_scales = arena_.take<float>(scales);
  }
}

// The angle is a float32 product, as in every trained model's own code; its cosine is correctly rounded.
void Session::fill_rope_tables() {
  for (size_t i = 0; i < ropes.size(); ++i) {
    const Rope& rope = model.ropes[i];
    float* cos = const_cast<float*>(ropes[i].cos);
    float* sin = const_cast<float*>(ropes[i].sin);
    for (int position = 0; position < max_context; ++position) {
      for (float frequency : rope.inv_freq) {
        const double angle = static_cast<float>(position) * frequency;
        *cos++ = static_cast<float>(std::cos(angle)) * rope.scale;
        *sin++ = static_cast<float>(std::sin(angle)) * rope.scale;
      }
    }
  }
}

}  // namespace penjing
