// What a decoder computes, as penjing/format/architecture.py tells it, checked as it checks it.
#pragma once
#include <vector>

#include "penjing.h"
#include "reader/json.h"

namespace penjing::reader {

struct Rope {
  std::vector<float> inv_freq;
  float scale;
};

struct Architecture {
  int vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim;
  bool tied, pre_norm, post_norm, parallel, gated;
  int norm, qk_norm, activation;  // as in pj_model_desc
  float norm_eps, attention_scale, embedding_scale, residual_scale, logit_scale;
  std::vector<Rope> ropes;
  std::vector<int> layer_rope, layer_window;  // [num_layers]
  std::vector<int32_t> eos_tokens;
  int32_t bos_token;  // -1: none

  int q_size() const { return num_heads * head_dim; }
  int kv_size() const { return num_kv_heads * head_dim; }
};

// Throws Error on anything that could not be run.
Architecture read_architecture(const Json& json);

// How a matrix is stored: a Layout of penjing/format/pack.py.
struct Layout {
  pj_kind kind;
  int rows, cols, bits, group_size;
  bool symmetric;
  pj_levels levels;
  int scale_bits;

  uint64_t num_panels() const { return (static_cast<uint64_t>(rows) + PJ_LANES - 1) / PJ_LANES; }
  uint64_t num_groups() const { return static_cast<uint64_t>(cols / group_size); }
  uint64_t panel_bytes() const;  // of codes
  uint64_t book_size() const { return levels == PJ_BOOK ? uint64_t{1} << bits : 0; }
};

Layout read_layout(const Json& json, const std::string& name);

}  // namespace penjing::reader
