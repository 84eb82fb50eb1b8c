// What an instruction set must provide. One object file per ISA fills one table; the scalar one is the oracle,
// and every other must give the same bits: sums are integers, float steps happen in one fixed order (fused
// multiply-adds where the scalar code says fma). So the result does not depend on how many columns, panels or
// threads share the work.
#pragma once
#include <cstddef>
#include <cstdint>

#include "penjing.h"

namespace penjing {

// A matrix whose sizes were checked. Panels of 16 rows; layout in penjing.h.
struct Matrix {
  pj_kind kind;
  const uint8_t* data;
  const uint8_t* scales;  // [panel][group][16] of scale_bytes each
  const uint8_t* zeros;   // [panel][group][16] or null
  const float* bias;      // [rows] or null
  const int8_t* book;     // [2^bits] or null
  pj_levels levels;
  int rows, cols, bits, group_size;
  int scale_bytes;                     // 2: float16
  int num_panels, num_groups, stride;  // stride: group_size rounded up to 16
  size_t panel_bytes;                  // of data
};

// Columns of activations, quantized for one group size: value = code * scale.
// amax/127 is the scale of a group, codes x * (127/amax) round to nearest even in [-127, 127], padding has code 0.
// A group with infinity or NaN has scale NaN and codes 0, so that its outputs are NaN; amax < 2^-100 counts as 0.
struct QuantizedColumns {
  int8_t* code;  // [column][num_groups * stride]
  float* scale;  // [group][ld]: a group's columns side by side, as products want them
  int32_t* sum;  // [group][ld] sum of the codes
  int ld;

  // The same from column `first` on, for matrices like w.
  QuantizedColumns from(const Matrix& w, int first) const {
    return {code + static_cast<size_t>(first) * w.num_groups * w.stride, scale + first, sum + first, ld};
  }
};

// Positions of one step of the softmax. Steps begin at multiples of it.
constexpr int kSpan = 64;

// Keys and values of one layer and one key-value head. Floats: keys [place / 16][head_dim][16], values
// [place][head_dim]. PJ_I8: codes as in QuantizedColumns, a whole head being the group, each + 128 in a byte; both
// [place / 16][dimension / 16][4 blocks][16][4], head_dim filled up to whole units with 0. A key's byte is in block
// dimension % 16 / 4 at [place % 16][dimension % 4], a value's in block place % 16 / 4 at [dimension % 16][place % 4].
struct KvHead {
  void* keys;
  void* values;
  pj_kind kind;         // PJ_F32, PJ_F16 or PJ_I8
  int capacity;         // places: all that positions ever need, or, of a ring, a multiple of kSpan
  float* key_scales;    // [place], PJ_I8 only
  float* value_scales;  // the same
};

// A ring keeps the last `capacity` positions, every span in one piece. Static, for the reason told in kernels.inl.
static inline int place_of(const KvHead& cache, int position) {
  return position < cache.capacity ? position : position % cache.capacity;
}

constexpr size_t kv_element_bytes(pj_kind kind) { return kind == PJ_F32 ? 4 : kind == PJ_F16 ? 2 : 1; }
// Of the keys or the values of one position.
constexpr size_t kv_row_bytes(pj_kind kind, int head_dim) {
  return kind == PJ_I8 ? (static_cast<size_t>(head_dim) + 15) / 16 * 16
                       : static_cast<size_t>(head_dim) * kv_element_bytes(kind);
}

struct Kernels {
  const char* name;

  void (*quantize_columns)(const float* x, int num_columns, int cols, int group_size, const QuantizedColumns& out);

  // y[column * ld_y + row] for the 16 rows of each panel in [panel_begin, panel_end), bias added; rows past the
  // end of the matrix are written too (as garbage-free zeros), so ld_y >= 16 * num_panels.
  // Per row and column: acc = 0; for each group: acc = fma(float(sum_i code*x - zero*sum_x), scale_w * scale_x, acc);
  // then acc += bias. scratch: linear_scratch_bytes(matrix) bytes of the calling thread, 64-byte aligned.
  void (*linear_codes)(const Matrix& w, int panel_begin, int panel_end, const QuantizedColumns& x, int num_columns,
                       float* y, size_t ld_y, void* scratch);
  // Float weights (f32, f16, bf16): acc = fma(w, x, acc) over inputs in order; x is [column][cols].
  void (*linear_float)(const Matrix& w, int panel_begin, int panel_end, const float* x, int num_columns, float* y,
                       size_t ld_y);
  // out[column * num_rows + row] of rows that lie input after input (f32 or f16): 16 sums, one of every 16th input
  // in order (acc = fma(w, x, acc)), added in the tree of all norms. x is [column][cols].
  void (*row_dots)(const void* rows, pj_kind kind, int num_rows, int cols, const float* x, int num_columns, float* out);
  // One row of any matrix as floats (embedding lookup).
  void (*read_row)(const Matrix& w, int row, float* out);

  void (*rms_norm)(const float* x, const float* weight, int size, float eps, float* y);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int size, float eps, float* y);
  // In place on one head: pairs (j, j + rotary_dim/2); cos, sin: [rotary_dim / 2].
  void (*rope)(float* head, const float* cos, const float* sin, int rotary_dim);
  // y = act(gate) * up, or act(gate) where up is null. y may be gate.
  void (*activate)(pj_activation act, const float* gate, const float* up, int size, float* y);
  // y += scale * x
  void (*add_scaled)(const float* x, float scale, int size, float* y);

  // Write one position of one head into the cache.
  void (*store_kv)(const KvHead& cache, int head_dim, int position, const float* key, const float* value);
  // Softmax attention of num_queries queries (already scaled by attention_scale) against one key-value head:
  // query r, at positions[r] (ascending, repeats allowed: heads that share keys and values), sees positions
  // (positions[r] - window, positions[r]], window 0: from 0. Spans of absolute positions in ascending order, running sum
  // and a maximum that follows where a score, in powers of two, is 24 above it: the split into calls does not matter.
  // PJ_I8: a query becomes codes, as one group of quantize_columns, score = float(sum of products of codes) * (scale of
  // the query * scale of the key); a span's weights, each times its value's scale, become codes in the same way, and
  // their sum times their scale is added. Reads whole blocks of 16 positions, but nothing of what is not seen shows in
  // the result, so a ring need only hold what is seen; of floats it reads no value before the first and none past the
  // last. q, out: rows ld apart. scratch: attend_scratch_bytes(head_dim, num_queries) bytes of the calling thread.
  void (*attend)(const KvHead& cache, int head_dim, const float* q, size_t ld_q, const int32_t* positions,
                 int num_queries, int window, float* out, size_t ld_out, void* scratch);

  // Probes: read a buffer (returns a checksum), and run `steps` of the int8 inner loop (returns multiply-adds done).
  uint64_t (*probe_read)(const uint8_t* buffer, size_t size);
  uint64_t (*probe_int8)(uint64_t steps, int32_t* sink);
};

size_t linear_scratch_bytes(const Matrix& w);
size_t attend_scratch_bytes(int head_dim, int num_queries);

// The table in use: the best this CPU runs, or what PENJING_ISA names; throws std::runtime_error if it cannot run here.
const Kernels& kernels();
// Every table compiled in that this CPU can run, scalar first. For tests.
const Kernels* const* available_kernels(int* count);

}  // namespace penjing
