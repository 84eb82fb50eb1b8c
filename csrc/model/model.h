// A decoder whose sizes were checked: every product below is within its array, every kernel covers its matrix.
#pragma once
#include <vector>

#include "kernels/kernels.h"

namespace penjing {

struct Norm {
  const float* weight = nullptr;  // null: absent
  const float* bias = nullptr;
};

struct Layer {
  Norm attn_norm, q_norm, k_norm, attn_post_norm, mlp_norm, mlp_post_norm;
  Matrix q, k, v, o, gate, up, down;  // gate.kind PJ_ABSENT: plain MLP
  int rope, window;
};

struct Rope {
  std::vector<float> inv_freq;
  float scale;
};

enum class QkNorm { kNone = 0, kHead = 1, kFull = 2 };

struct Model {
  int vocab_size, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim;
  bool layer_norm, parallel;
  QkNorm qk_norm;
  pj_activation activation;
  float norm_eps, attention_scale, embedding_scale, residual_scale, logit_scale;
  std::vector<Rope> ropes;
  std::vector<Layer> layers;
  Matrix embed, head;  // a tied head is the same matrix
  Norm final_norm;

  int q_size() const { return num_heads * head_dim; }
  int kv_size() const { return num_kv_heads * head_dim; }
  int queries_per_kv() const { return num_heads / num_kv_heads; }
};

inline bool present(const Matrix& matrix) { return matrix.kind != PJ_ABSENT; }
inline bool present(const Norm& norm) { return norm.weight != nullptr; }

// Throws Error that names the part: "layers.3.down: group_size 64 does not divide 96 inputs".
Model check_model(const pj_model_desc& desc);
Matrix check_matrix(const char* name, const pj_matrix& matrix);

// Panels [begin, end) as a matrix of their own.
Matrix panels_of(const Matrix& matrix, int begin, int end);

}  // namespace penjing
