// The decoder's layers. Threads run Pass::run on the same columns and meet at barriers; or, where a prompt is long, apart
// on columns of their own, and meet once a layer, when keys and values are stored. Panels of shared columns go to whoever
// comes for them, and kernels give the same bits however work is shared, so results do not depend on threads.
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
        needed_{0, num_columns_},
        mine_(alone_ ? needed_ : share(num_columns_)),
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
  Range needed_;      // columns of which more than keys and values matters: in the last layer only what is asked for
  Range mine_;        // columns that this thread prepares
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

  // body(panels) until all panels are done, by those who share these columns; once between two barriers.
  template <class Body>
  void share_out(int num_panels, Body body) {
    if (crew_ == 1) return body(Range{0, num_panels});
    session_.team.share_out(num_panels, rank_, body);
  }

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
    if (n + 1 == model_.layers.size()) leave_out_unwanted();
    share_out(layer.q.num_panels + layer.k.num_panels + layer.v.num_panels,
              [&](Range panels) { linear_qkv(layer, panels); });
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
    share_out(layer.o.num_panels, [&](Range panels) { linear(layer.o, panels, block_.attn_out); });
    barrier();
  }

  void mlp(const Layer& layer) {
    if (present(layer.gate)) {
      prepare_normed(layer.mlp_norm, {&layer.gate, &layer.up});
    } else {
      prepare_normed(layer.mlp_norm, {&layer.up});
    }
    share_out(layer.up.num_panels, [&](Range panels) { gate_up(layer, panels); });
    barrier();
    prepare(block_.activated, model_.intermediate_size, {&layer.down});
    share_out(layer.down.num_panels, [&](Range panels) { linear(layer.down, panels, block_.mlp_out); });
    if (!apart_) meet();
  }

  // Of a prompt only the last logits are asked for, so only these columns go on beyond the last layer's keys and values.
  // Not where adapters are: what they add lies by runs of columns.
  void leave_out_unwanted() {
    if (call_.adapted) return;
    needed_ = wanted();
    require_finite({mine_.begin, std::min(mine_.end, needed_.begin)});
    mine_ = intersect(mine_, needed_);
  }

  // Columns of this block whose logits are asked for.
  Range wanted() const {
    return {std::min(num_columns_, std::max(0, call_.num_columns - call_.num_logits - first_)), num_columns_};
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
      const QuantizedColumns out = quantized_[num_variants_].from(*m, columns.begin);
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

  // Panels of one matrix times the prepared columns from `begin` on; y [column][ld_y] starts at the first panel.
  void multiply(const Matrix& m, int begin, int num_columns, float* y, size_t ld_y) {
    if (m.kind == PJ_CODES) {
      const QuantizedColumns x = quantized_[variant(m.group_size)].from(m, begin);
      kernels_.linear_codes(m, 0, m.num_panels, x, num_columns, y, ld_y, buffers_.scratch);
    } else {
      const float* x = input_ + static_cast<size_t>(begin) * m.cols;
      kernels_.linear_float(m, 0, m.num_panels, x, num_columns, y, ld_y);
    }
  }

  void linear(const Matrix& m, Range panels, float* y) { linear(m, panels, y, needed_); }

  void linear(const Matrix& m, Range panels, float* y, Range columns) {
    if (panels.empty() || columns.empty()) return;
    const int ld = m.num_panels * PJ_LANES;
    float* out = column(y, ld, columns.begin) + panels.begin * PJ_LANES;
    multiply(panels_of(m, panels.begin, panels.end), columns.begin, columns.size(), out, static_cast<size_t>(ld));
    if (call_.adapted) add_projected(m, panels, y);
  }

  // The three matrices' panels are shared out as one run, so that few panels still split evenly.
  void linear_qkv(const Layer& layer, Range panels) {
    const int num_q = layer.q.num_panels, num_k = layer.k.num_panels, num_v = layer.v.num_panels;
    const auto part = [&](int first, int count) {
      const Range own = intersect(panels, {first, first + count});
      return Range{own.begin - first, own.end - first};
    };
    linear(layer.q, part(0, num_q), block_.q);
    linear(layer.k, part(num_q, num_k), block_.k, {0, num_columns_});
    linear(layer.v, part(num_q + num_k, num_v), block_.v, {0, num_columns_});
  }

  void gate_up(const Layer& layer, Range panels) {
    const int inner = model_.intermediate_size, ld = padded(inner);
    linear(layer.up, panels, block_.up);
    if (present(layer.gate)) linear(layer.gate, panels, block_.gate);
    const Range rows = intersect({panels.begin * PJ_LANES, panels.end * PJ_LANES}, {0, inner});
    if (rows.empty()) return;
    for (int c = needed_.begin; c < needed_.end; ++c) {
      const float* up = column(block_.up, ld, c) + rows.begin;
      const float* gate = present(layer.gate) ? column(block_.gate, ld, c) + rows.begin : nullptr;
      float* out = column(block_.activated, inner, c) + rows.begin;
      kernels_.activate(model_.activation, gate ? gate : up, gate ? up : nullptr, rows.size(), out);
    }
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

  // attention.cpp
  bool heads_apart() const;
  void norm_all_heads(const Layer& layer);
  void rotate_and_store(size_t n, const Layer& layer);
  void rotate_and_store(size_t n, const Layer& layer, int kv, int c);
  void rotate(const Layer& layer, const Norm& weights, int position, float* head);
  void attend_apart(size_t n, const Layer& layer);
  void attend(size_t n, const Layer& layer);
  void attend_only_column(size_t n, const Layer& layer);
  void attend_run(size_t n, const Layer& layer, Range columns, Range heads);
  int end_of_run(int begin) const;
  const KvHead& kv_head(const Column& column, size_t n, int kv) const;

  // adapter.cpp
  template <class Visit>
  void for_each_addition(const Matrix& m, Visit visit) const;
  void project(const float* x, int cols, Matrices readers, Range columns);
  void add_projected(const Matrix& m, Range panels, float* y);

  // head.cpp
  void require_finite(Range columns);
  void finish();
  void prepare_head(Range columns);
  void write_logits(Range panels, Range wanted, float* logits);
};

}  // namespace penjing
