// Attention in a forward pass: heads are rotated, stored and attended.
#include <algorithm>

#include "model/pass.h"

namespace penjing {

void Pass::norm_all_heads(const Layer& layer) {
  const int q_size = model_.q_size(), kv_size = model_.kv_size();
  const Range columns = share(num_columns_);
  for (int c = columns.begin; c < columns.end; ++c) {
    float* q = column(block_.q, padded(q_size), c);
    float* k = column(block_.k, padded(kv_size), c);
    if (c >= needed_.begin) kernels_.rms_norm(q, layer.q_norm.weight, q_size, model_.norm_eps, q);
    kernels_.rms_norm(k, layer.k_norm.weight, kv_size, model_.norm_eps, k);
  }
}

// Work is a key-value head with its queries, in a column; a thread takes neighbouring columns of a head.
void Pass::rotate_and_store(size_t n, const Layer& layer) {
  const Range work = share(model_.num_kv_heads * num_columns_);
  for (int i = work.begin; i < work.end; ++i) rotate_and_store(n, layer, i / num_columns_, i % num_columns_);
}

void Pass::rotate_and_store(size_t n, const Layer& layer, int kv, int c) {
  const int dim = model_.head_dim, group = model_.queries_per_kv(), position = columns_[c].position;
  float* key = column(block_.k, padded(model_.kv_size()), c) + kv * dim;
  const float* value = column(block_.v, padded(model_.kv_size()), c) + kv * dim;
  rotate(layer, layer.k_norm, position, key);
  kernels_.store_kv(kv_head(columns_[c], n, kv), dim, position, key, value);
  if (c < needed_.begin) return;
  for (int j = 0; j < group; ++j) {
    float* query = column(block_.q, padded(model_.q_size()), c) + (kv * group + j) * dim;
    rotate(layer, layer.q_norm, position, query);
    scale(query, model_.attention_scale, dim);
  }
}

// Whether what a key-value head does in a column (store, then attend) can stay on one thread, which saves a barrier:
// no column sees another's keys, and the work still splits so evenly that nobody waits longer than for the barrier.
bool Pass::heads_apart() const {
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

void Pass::attend_apart(size_t n, const Layer& layer) {
  const int group = model_.queries_per_kv();
  const Range work = share(model_.num_kv_heads * num_columns_);
  for (int i = work.begin; i < work.end; ++i) {
    const int kv = i / num_columns_, c = i % num_columns_;
    rotate_and_store(n, layer, kv, c);
    if (c >= needed_.begin) attend_run(n, layer, {c, c + 1}, {kv * group, (kv + 1) * group});
  }
}

void Pass::rotate(const Layer& layer, const Norm& weights, int position, float* head) {
  if (model_.qk_norm == QkNorm::kHead) {
    kernels_.rms_norm(head, weights.weight, model_.head_dim, model_.norm_eps, head);
  }
  if (layer.rope < 0) return;
  const RopeTable& table = session_.ropes[static_cast<size_t>(layer.rope)];
  const size_t row = static_cast<size_t>(position) * (table.rotary_dim / 2);
  kernels_.rope(head, table.cos + row, table.sin + row, table.rotary_dim);
}

const KvHead& Pass::kv_head(const Column& column, size_t n, int kv) const {
  return column.cache[n * static_cast<size_t>(model_.num_kv_heads) + static_cast<size_t>(kv)];
}

// Columns are attended in runs of neighbours from one sequence, which are the queries against one head. A column
// without such neighbours (decoding) brings the heads that share keys and values as the queries instead. Later
// columns see more keys, so the work is dealt in turn.
void Pass::attend(size_t n, const Layer& layer) {
  if (num_columns_ == 1 && !needed_.empty()) return attend_only_column(n, layer);
  int turn = 0;
  for (int begin = needed_.begin, end; begin < num_columns_; begin = end) {
    end = end_of_run(begin);
    const int together = end - begin == 1 ? model_.queries_per_kv() : 1;
    for (int head = 0; head < model_.num_heads; head += together, ++turn) {
      if (turn % crew_ == rank_) attend_run(n, layer, {begin, end}, {head, head + together});
    }
  }
}

// The heads of a single column are split evenly, though some keys and values are then read by two threads.
void Pass::attend_only_column(size_t n, const Layer& layer) {
  const int group = model_.queries_per_kv();
  const Range heads = share(model_.num_heads);
  for (int head = heads.begin, next; head < heads.end; head = next) {
    next = std::min(heads.end, (head / group + 1) * group);
    attend_run(n, layer, {0, 1}, {head, next});
  }
}

int Pass::end_of_run(int begin) const {
  const int most = std::min(num_columns_, begin + kQueryBlock);
  int end = begin + 1;
  while (end < most && columns_[end].cache == columns_[begin].cache) ++end;
  return end;
}

// Either several columns or several heads.
void Pass::attend_run(size_t n, const Layer& layer, Range columns, Range heads) {
  const int dim = model_.head_dim, q_size = model_.q_size();
  const int count = columns.size() * heads.size();
  const bool by_column = columns.size() > 1;
  for (int i = 0; i < count; ++i) buffers_.positions[i] = columns_[columns.begin + (by_column ? i : 0)].position;
  kernels_.attend(kv_head(columns_[columns.begin], n, heads.begin / model_.queries_per_kv()), dim,
                  column(block_.q, padded(q_size), columns.begin) + heads.begin * dim, by_column ? padded(q_size) : dim,
                  buffers_.positions, count, layer.window,
                  column(block_.attended, q_size, columns.begin) + heads.begin * dim, by_column ? q_size : dim,
                  buffers_.scratch);
}

}  // namespace penjing
