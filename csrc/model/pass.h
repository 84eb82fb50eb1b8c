// The decoder's layers. Threads run Pass::run on the same columns and meet at barriers; or, where a prompt is long, apart
// on columns of their own, and meet once a layer, when keys and values are stored. What a thread writes depends only on
// sizes, and kernels give the same bits however work is shared, so results do not depend on threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <initializer_list>

#include "model/session.h"
#include "ops/range.h"

namespace penjing {

// One call of pj_forward, seen by all threads.
struct Call {
  const Column* columns;
  int num_columns;
  float* logits;
  int num_logits;
  bool adapted;            // some columns have adapters
  bool cancelled[2] = {};  // see Pass::meet
  std::atomic<bool> not_finite{false};
};

// Some columns on one thread, which has them for itself if threads go apart.
class Pass {
 public:
  Pass(Session& session, Call& call, int thread, Range columns, bool apart)
      : session_(session),
        model_(session.model),
        kernels_(session.kernels),
        call_(call),
        buffers_(session.threads[static_cast<size_t>(thread)]),
        thread_(thread),
        apart_(apart),
        crew_(apart ? 1 : session.team.size()),
        rank_(apart ? 0 : thread),
        columns_(call.columns + columns.begin),
        first_(columns.begin),
        num_columns_(columns.size()),
        alone_(num_columns_ <= kOwnColumns),
        mine_(alone_ ? Range{0, num_columns_} : share(num_columns_)),
        block_(session.blocks[apart ? static_cast<size_t>(thread) : 0]),
        work_(alone_ ? buffers_.own : block_.work),
        heads_apart_(!apart && heads_apart()) {}

  // False if it was cancelled, of all threads alike.
  bool run() {
    embed();
    for (size_t n = 0; n < model_.layers.size(); ++n) {
      layer(n);
      if (cancelled_) return false;
    }
    finish();
    return true;
  }

 private:
  using Matrices = std::initializer_list<const Matrix*>;

  Session& session_;
  const Model& model_;
  const Kernels& kernels_;
  Call& call_;
  ThreadBuffers& buffers_;
  const int thread_;
  const bool apart_;
  const int crew_, rank_;        // threads that share these columns, and which of them this is
  const Column* const columns_;  // of this block
  const int first_;              // this block's first column in the call
  const int num_columns_;
  const bool alone_;  // every thread prepares all columns in buffers of its own
  const Range mine_;  // columns that this thread prepares
  const Block& block_;
  const Workspace& work_;
  bool cancelled_ = false;
  size_t layer_ = 0;              // the layer at hand
  const bool heads_apart_;        // a thread stores the keys and values that it attends
  const float* input_ = nullptr;  // [column][cols] what linear() reads now, and its codes:
  QuantizedColumns quantized_[kMaxVariants];
  int group_size_[kMaxVariants];
  int num_variants_ = 0;

  float* column(float* base, int width, int c) const { return base + static_cast<size_t>(c) * width; }

  // Of those who share these columns.
  void barrier() {
    if (crew_ > 1) session_.team.barrier();
  }

  // All threads, once a layer: what the first has seen of a wish to stop holds for all. They read it before they meet
  // again, and it is written again only after that.
  void meet() {
    bool& cancelled = call_.cancelled[layer_ % 2];
    if (thread_ == 0) cancelled = session_.cancelled.load(std::memory_order_relaxed);
    session_.team.barrier();
    cancelled_ = cancelled;
  }

  Range share(int count) const { return split(count, crew_, rank_); }

  void embed() {
    const int hidden = model_.hidden_size;
    for (int c = mine_.begin; c < mine_.end; ++c) {
      float* x = column(work_.x, hidden, c);
      kernels_.read_row(model_.embed, columns_[c].token, x);
      if (model_.embedding_scale != 1.0f) scale(x, model_.embedding_scale, hidden);
    }
  }

  void layer(size_t n) {
    const Layer& layer = model_.layers[n];
    layer_ = n;
    attention(n, layer);
    if (!model_.parallel) absorb(block_.attn_out, layer.attn_post_norm);
    mlp(layer);
    if (model_.parallel) absorb(block_.attn_out, layer.attn_post_norm);
    absorb(block_.mlp_out, layer.mlp_post_norm);
  }

  void attention(size_t n, const Layer& layer) {
    prepare_normed(layer.attn_norm, {&layer.q, &layer.k, &layer.v});
    linear_qkv(layer);
    barrier();
    if (model_.qk_norm == QkNorm::kFull) {
      norm_all_heads(layer);
      barrier();
    }
    if (heads_apart_) {
      attend_apart(n, layer);
    } else {
      rotate_and_store(n, layer);
      apart_ ? meet() : barrier();
      attend(n, layer);
    }
    barrier();
    prepare(block_.attended, model_.q_size(), {&layer.o});
    linear(layer.o, share(layer.o.num_panels), block_.attn_out);
    barrier();
  }

  void mlp(const Layer& layer) {
    if (present(layer.gate)) {
      prepare_normed(layer.mlp_norm, {&layer.gate, &layer.up});
    } else {
      prepare_normed(layer.mlp_norm, {&layer.up});
    }
    gate_up(layer);
    barrier();
    prepare(block_.activated, model_.intermediate_size, {&layer.down});
    linear(layer.down, share(layer.down.num_panels), block_.mlp_out);
    if (!apart_) meet();
  }

  void norm(const Norm& norm, const float* x, int size, float* y) {
    if (model_.layer_norm) {
      kernels_.layer_norm(x, norm.weight, norm.bias, size, model_.norm_eps, y);
    } else {
      kernels_.rms_norm(x, norm.weight, size, model_.norm_eps, y);
    }
  }

  void scale(float* x, float factor, int size) {
    for (int i = 0; i < size; ++i) x[i] *= factor;
  }

  // The norm of this thread's columns of the residual stream becomes the input of `readers`.
  void prepare_normed(const Norm& weights, Matrices readers) {
    if (!present(weights)) return prepare(work_.x, model_.hidden_size, readers);
    norm_columns(weights, mine_);
    prepare(work_.normed, model_.hidden_size, readers);
  }

  void norm_columns(const Norm& weights, Range columns) {
    const int hidden = model_.hidden_size;
    for (int c = columns.begin; c < columns.end; ++c) {
      norm(weights, column(work_.x, hidden, c), hidden, column(work_.normed, hidden, c));
    }
  }

  // x [column][cols] becomes the input of `readers`, quantized once for each group size among them.
  void prepare(const float* x, int cols, Matrices readers) { prepare(x, cols, readers, mine_); }

  void prepare(const float* x, int cols, Matrices readers, Range columns) {
    input_ = x;
    num_variants_ = 0;
    for (const Matrix* m : readers) {
      if (m->kind != PJ_CODES || variant(m->group_size) >= 0) continue;
      quantized_[num_variants_] = work_.quantized[num_variants_];
      group_size_[num_variants_] = m->group_size;
      const QuantizedColumns out = from_column(quantized_[num_variants_], *m, columns.begin);
      if (!columns.empty()) {
        const float* from = x + static_cast<size_t>(columns.begin) * cols;
        kernels_.quantize_columns(from, columns.size(), cols, m->group_size, out);
      }
      ++num_variants_;
    }
    if (call_.adapted) project(x, cols, readers, columns);
    if (!alone_) barrier();
  }

  int variant(int group_size) const {
    for (int i = 0; i < num_variants_; ++i) {
      if (group_size_[i] == group_size) return i;
    }
    return -1;
  }

  static QuantizedColumns from_column(const QuantizedColumns& x, const Matrix& reader, int column) {
    const size_t groups = static_cast<size_t>(column) * reader.num_groups;
    return {x.code + groups * reader.stride, x.scale + groups, x.sum + groups};
  }

  // Panels of one matrix times the prepared columns from `begin` on; y [column][ld_y] starts at the first panel.
  void multiply(const Matrix& m, int begin, int num_columns, float* y, size_t ld_y) {
    if (m.kind == PJ_CODES) {
      const QuantizedColumns x = from_column(quantized_[variant(m.group_size)], m, begin);
      kernels_.linear_codes(m, 0, m.num_panels, x, num_columns, y, ld_y, buffers_.scratch);
    } else {
      const float* x = input_ + static_cast<size_t>(begin) * m.cols;
      kernels_.linear_float(m, 0, m.num_panels, x, num_columns, y, ld_y);
    }
  }

  void linear(const Matrix& m, Range panels, float* y) {
    if (panels.empty()) return;
    const size_t ld = static_cast<size_t>(m.num_panels) * PJ_LANES;
    multiply(panels_of(m, panels.begin, panels.end), 0, num_columns_, y + panels.begin * PJ_LANES, ld);
    if (call_.adapted) add_projected(m, panels, y);
  }

  // The three matrices' panels are shared out as one run, so that few panels still split evenly.
  void linear_qkv(const Layer& layer) {
    const int num_q = layer.q.num_panels, num_k = layer.k.num_panels, num_v = layer.v.num_panels;
    const Range panels = share(num_q + num_k + num_v);
    const auto part = [&](int first, int count) {
      const Range own = intersect(panels, {first, first + count});
      return Range{own.begin - first, own.end - first};
    };
    linear(layer.q, part(0, num_q), block_.q);
    linear(layer.k, part(num_q, num_k), block_.k);
    linear(layer.v, part(num_q + num_k, num_v), block_.v);
  }

  void gate_up(const Layer& layer) {
    const int inner = model_.intermediate_size, ld = padded(inner);
    const Range panels = share(layer.up.num_panels);
    linear(layer.up, panels, block_.up);
    if (present(layer.gate)) linear(layer.gate, panels, block_.gate);
    const Range rows = intersect({panels.begin * PJ_LANES, panels.end * PJ_LANES}, {0, inner});
    if (rows.empty()) return;
    for (int c = 0; c < num_columns_; ++c) {
      const float* up = column(block_.up, ld, c) + rows.begin;
      const float* gate = present(layer.gate) ? column(block_.gate, ld, c) + rows.begin : nullptr;
      float* out = column(block_.activated, inner, c) + rows.begin;
      kernels_.activate(model_.activation, gate ? gate : up, gate ? up : nullptr, rows.size(), out);
    }
  }

  void norm_all_heads(const Layer& layer) {
    const int q_size = model_.q_size(), kv_size = model_.kv_size();
    const Range columns = share(num_columns_);
    for (int c = columns.begin; c < columns.end; ++c) {
      float* q = column(block_.q, padded(q_size), c);
      float* k = column(block_.k, padded(kv_size), c);
      kernels_.rms_norm(q, layer.q_norm.weight, q_size, model_.norm_eps, q);
      kernels_.rms_norm(k, layer.k_norm.weight, kv_size, model_.norm_eps, k);
    }
  }

  // Work is a key-value head with its queries, in a column; a thread takes neighbouring columns of a head.
  void rotate_and_store(size_t n, const Layer& layer) {
    const Range work = share(model_.num_kv_heads * num_columns_);
    for (int i = work.begin; i < work.end; ++i) rotate_and_store(n, layer, i / num_columns_, i % num_columns_);
  }

  void rotate_and_store(size_t n, const Layer& layer, int kv, int c) {
    const int dim = model_.head_dim, group = model_.queries_per_kv(), position = columns_[c].position;
    float* key = column(block_.k, padded(model_.kv_size()), c) + kv * dim;
    const float* value = column(block_.v, padded(model_.kv_size()), c) + kv * dim;
    rotate(layer, layer.k_norm, position, key);
    kernels_.store_kv(kv_head(columns_[c], n, kv), dim, position, key, value);
    for (int j = 0; j < group; ++j) {
      float* query = column(block_.q, padded(model_.q_size()), c) + (kv * group + j) * dim;
      rotate(layer, layer.q_norm, position, query);
      scale(query, model_.attention_scale, dim);
    }
  }

  // Whether what a key-value head does in a column (store, then attend) can stay on one thread, which saves a barrier:
  // no column sees another's keys, and the work still splits so evenly that nobody waits longer than for the barrier.
  bool heads_apart() const {
    int last_position = 0;
    for (int c = 0; c < num_columns_; ++c) {
      for (int other = 0; other < c; ++other) {
        if (columns_[other].cache == columns_[c].cache) return false;
      }
      last_position = std::max(last_position, columns_[c].position);
    }
    const int work = model_.num_kv_heads * num_columns_, threads = session_.team.size();
    const int64_t idle = (threads - work % threads) % threads;  // thread-heads; of each, a thread's share is waited
    return idle * model_.q_size() / model_.num_kv_heads * 2 * last_position <= int64_t{kBarrierMacs} * threads;
  }

  void attend_apart(size_t n, const Layer& layer) {
    const int group = model_.queries_per_kv();
    const Range work = share(model_.num_kv_heads * num_columns_);
    for (int i = work.begin; i < work.end; ++i) {
      const int kv = i / num_columns_, c = i % num_columns_;
      rotate_and_store(n, layer, kv, c);
      attend_run(n, layer, {c, c + 1}, {kv * group, (kv + 1) * group});
    }
  }

  void rotate(const Layer& layer, const Norm& weights, int position, float* head) {
    if (model_.qk_norm == QkNorm::kHead) {
      kernels_.rms_norm(head, weights.weight, model_.head_dim, model_.norm_eps, head);
    }
    if (layer.rope < 0) return;
    const RopeTable& table = session_.ropes[static_cast<size_t>(layer.rope)];
    const size_t row = static_cast<size_t>(position) * (table.rotary_dim / 2);
    kernels_.rope(head, table.cos + row, table.sin + row, table.rotary_dim);
  }

  const KvHead& kv_head(const Column& column, size_t n, int kv) const {
    return column.cache[n * static_cast<size_t>(model_.num_kv_heads) + static_cast<size_t>(kv)];
  }

  // Columns are attended in runs of neighbours from one sequence, which are the queries against one head. A column
  // without such neighbours (decoding) brings the heads that share keys and values as the queries instead. Later
  // columns see more keys, so the work is dealt in turn.
  void attend(size_t n, const Layer& layer) {
    if (num_columns_ == 1) return attend_only_column(n, layer);
    int turn = 0;
    for (int begin = 0, end; begin < num_columns_; begin = end) {
      end = end_of_run(begin);
      const int together = end - begin == 1 ? model_.queries_per_kv() : 1;
      for (int head = 0; head < model_.num_heads; head += together, ++turn) {
        if (turn % crew_ == rank_) attend_run(n, layer, {begin, end}, {head, head + together});
      }
    }
  }

  // The heads of a single column are split evenly, though some keys and values are then read by two threads.
  void attend_only_column(size_t n, const Layer& layer) {
    const int group = model_.queries_per_kv();
    const Range heads = share(model_.num_heads);
    for (int head = heads.begin, next; head < heads.end; head = next) {
      next = std::min(heads.end, (head / group + 1) * group);
      attend_run(n, layer, {0, 1}, {head, next});
    }
  }

  int end_of_run(int begin) const {
    const int most = std::min(num_columns_, begin + kQueryBlock);
    int end = begin + 1;
    while (end < most && columns_[end].cache == columns_[begin].cache) ++end;
    return end;
  }

  // Either several columns or several heads.
  void attend_run(size_t n, const Layer& layer, Range columns, Range heads) {
    const int dim = model_.head_dim, q_size = model_.q_size();
    const int count = columns.size() * heads.size();
    const bool by_column = columns.size() > 1;
    for (int i = 0; i < count; ++i) buffers_.positions[i] = columns_[columns.begin + (by_column ? i : 0)].position;
    kernels_.attend(kv_head(columns_[columns.begin], n, heads.begin / model_.queries_per_kv()), dim,
                    column(block_.q, padded(q_size), columns.begin) + heads.begin * dim,
                    by_column ? padded(q_size) : dim, buffers_.positions, count, layer.window,
                    column(block_.attended, q_size, columns.begin) + heads.begin * dim, by_column ? q_size : dim,
                    buffers_.scratch);
  }

  // Residual: x += residual_scale * post_norm(out), for this thread's columns. out is [column][padded hidden].
  void absorb(float* out, const Norm& post_norm) {
    const int hidden = model_.hidden_size;
    for (int c = mine_.begin; c < mine_.end; ++c) {
      const float* branch = column(out, padded(hidden), c);
      if (present(post_norm)) {
        float* normed = column(work_.normed, hidden, c);
        norm(post_norm, branch, hidden, normed);
        branch = normed;
      }
      kernels_.add_scaled(branch, model_.residual_scale, hidden, column(work_.x, hidden, c));
    }
  }

  // adapter.cpp
  template <class Visit>
  void for_each_addition(const Matrix& m, Visit visit) const;
  void project(const float* x, int cols, Matrices readers, Range columns);
  void add_projected(const Matrix& m, Range panels, float* y);

  // head.cpp
  void finish();
  void prepare_head(Range columns);
  void write_logits(Range wanted, float* logits);
};

}  // namespace penjing
