// Conversations with a model: their KV caches, and every buffer that a forward pass writes.
#pragma once
#include <algorithm>
#include <atomic>
#include <climits>
#include <memory>
#include <vector>

#include "model/adapter.h"
#include "ops/arena.h"
#include "ops/team.h"

namespace penjing {

// Prompts go through the layers in blocks of at most this many columns: enough that a panel unpacked once serves many
// columns, few enough that a block's activations stay in the L2 cache.
constexpr int kBlockColumns = 128;
// Two to four threads take columns of a long prompt apart, so many at a time: nobody reads what another wrote, keys
// and values apart, and they meet once a layer instead of ten times (docs/engine.md, Threads).
constexpr int kApartColumns = 256;
// Fewer columns a thread are not worth that each unpacks every panel.
constexpr int kLeastApart = 64;
// So few columns are prepared (norm, quantize) by every thread for itself: that is cheaper than waiting for each other.
constexpr int kOwnColumns = 4;
// Prefill: queries of one head that are attended together.
constexpr int kQueryBlock = 32;
// Multiply-adds of attention that take about as long as a barrier.
constexpr int kBarrierMacs = 1 << 16;
// Floats of logits that a thread computes before it scales and copies them to the caller.
constexpr int kLogitTile = 16384;
// q, k and v (or gate and up) may each ask for their common input quantized with another group size.
constexpr int kMaxVariants = 3;
// A block is in the cache before it is attended, so that what a ring holds beyond a window is the way back, too.
static_assert(kApartColumns <= PJ_WAY_BACK && kBlockColumns <= kApartColumns,
              "a block would overwrite what its first column sees");

// The residual stream and what the next matrices read, for some columns.
struct Workspace {
  int columns;    // that there is room for
  float* x;       // [column][hidden] residual stream
  float* normed;  // [column][hidden]
  QuantizedColumns quantized[kMaxVariants];
  QuantizedColumns head;  // [2 * column], see Pass::prepare_head
  float* projected;       // [kMaxVariants][column][PJ_MAX_RANK] what adapters' A make of the input
};

// Columns that go through the layers together. A leading dimension of padded rows is what linear kernels write.
struct Block {
  Workspace work;
  float *q, *k, *v;           // [column][padded q_size], [column][padded kv_size] twice
  float* attended;            // [column][q_size]
  float *gate, *up;           // [column][padded intermediate_size]
  float* activated;           // [column][intermediate_size]
  float *attn_out, *mlp_out;  // [column][padded hidden]
};

struct ThreadBuffers {
  Workspace own;       // [kOwnColumns]
  void* scratch;       // of the kernels
  float* logits;       // [kLogitTile]
  int32_t* positions;  // [max(kQueryBlock, queries_per_kv)] of queries attended together
};

// What goes through the layers: a token at a position of the sequence whose cache it joins. Columns of all sequences
// are alike, so nothing else in a forward pass knows that there are several.
struct Column {
  int32_t token, position;
  const KvHead* cache;     // [layer][kv head] of its sequence
  const Adapter* adapter;  // null: none
};

struct RopeTable {
  const float* cos;  // [position][rotary_dim / 2]
  const float* sin;
  int rotary_dim;
};

// How keys and values are kept where nobody says: see pj_session_create.
inline pj_kind usual_kv_kind(const Model& model) {
  const auto has_bias = [](const Layer& layer) { return layer.k.bias != nullptr; };
  return std::any_of(model.layers.begin(), model.layers.end(), has_bias) ? PJ_F16 : PJ_I8;
}

struct Session {
  // way_back: what tests choose, so large that every layer keeps everything.
  Session(const Model& model, int max_context, int num_sequences, int num_threads, pj_kind kv_kind,
          int way_back = PJ_WAY_BACK);

  const Model& model;
  const Kernels& kernels;
  const int max_context;
  const int num_sequences;
  const pj_kind kv_kind;
  const int way_back;
  std::atomic<bool> cancelled{false};
  Team team;

  std::vector<Block> blocks;  // the first of kBlockColumns, shared by all threads; where threads go apart, one for each
  Column* call_columns;       // [num_sequences * max_context] of the call under way
  Column* folded;             // [kApartColumns], where threads go apart
  std::vector<ThreadBuffers> threads;
  std::vector<RopeTable> ropes;
  std::vector<KvHead> kv;                // [sequence][layer][kv head]
  std::vector<int> lengths;              // [sequence]
  std::vector<int> next_lengths;         // [sequence] once the call under way has succeeded
  std::vector<int> least;                // [sequence] see pj_session_least
  std::vector<const Adapter*> adapters;  // [sequence], null: none

  bool can_go_apart() const { return blocks.size() > 1; }
  size_t bytes() const { return arena_.size(); }
  // The fewest tokens, none apart, that a sequence can be cut to once it has held `length`.
  int least_after(int length) const { return length > kept_whole_ ? length - way_back : 0; }
  const KvHead* cache(int sequence) const {
    return &kv[static_cast<size_t>(sequence) * model.layers.size() * static_cast<size_t>(model.num_kv_heads)];
  }

 private:
  void lay_out();
  Workspace take_workspace(int columns);
  Block take_block(int columns);
  QuantizedColumns take_columns(size_t columns, size_t codes, size_t groups);
  void take_rope_tables();
  int cache_positions(int window) const;
  void take_cache();
  void fill_rope_tables();

  Arena arena_;
  int kept_whole_ = INT_MAX;  // as long a sequence has all its positions in all layers
};

inline int padded(int rows) { return (rows + PJ_LANES - 1) / PJ_LANES * PJ_LANES; }

// See pj_forward and the others. They throw Error and leave the session as penjing.h says.
void forward(Session& session, const int32_t* tokens, const int32_t* sequences, int num_tokens, float* logits,
             int num_logits);
int check_sequence(const Session& session, int sequence);  // that there is such a one
void truncate(Session& session, int sequence, int length);
void fork(Session& session, int from, int to, int length);
void use_adapter(Session& session, int sequence, const Adapter* adapter);
size_t state_bytes(const Session& session, int length, int least);
void export_state(const Session& session, int sequence, uint8_t* state);
void import_state(Session& session, int sequence, const uint8_t* state, int length, int least);

}  // namespace penjing
