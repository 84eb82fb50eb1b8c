#include "model/model.h"

#include <cmath>
#include <string>

#include "ops/error.h"

namespace penjing {
namespace {

constexpr int kMaxSize = 1 << 24;  // as in penjing/format/architecture.py

void check_size(const char* name, int64_t value) {
  if (value < 1 || value > kMaxSize) fail(PJ_BAD_ARGUMENT, "%s is %lld", name, static_cast<long long>(value));
}

void check_finite(const char* name, float value) {
  if (!std::isfinite(value)) fail(PJ_BAD_ARGUMENT, "%s is not finite", name);
}

void check_sizes(const pj_model_desc& d) {
  check_size("vocab_size", d.vocab_size);
  check_size("hidden_size", d.hidden_size);
  check_size("intermediate_size", d.intermediate_size);
  check_size("num_layers", d.num_layers);
  check_size("num_heads", d.num_heads);
  check_size("num_kv_heads", d.num_kv_heads);
  check_size("head_dim", d.head_dim);
  check_size("num_heads * head_dim", static_cast<int64_t>(d.num_heads) * d.head_dim);
  if (d.num_heads % d.num_kv_heads) {
    fail(PJ_BAD_ARGUMENT, "%d heads do not share %d key-value heads evenly", d.num_heads, d.num_kv_heads);
  }
  if (d.qk_norm < 0 || d.qk_norm > 2) fail(PJ_BAD_ARGUMENT, "unknown qk_norm %d", d.qk_norm);
  if (d.activation < PJ_SILU || d.activation > PJ_GELU_TANH) {
    fail(PJ_BAD_ARGUMENT, "unknown activation %d", d.activation);
  }
  if (d.num_ropes < 0 || d.num_ropes > PJ_MAX_ROPES) {
    fail(PJ_BAD_ARGUMENT, "%d ropes, where at most %d are known", d.num_ropes, PJ_MAX_ROPES);
  }
  if (!d.layers) fail(PJ_BAD_ARGUMENT, "no layers");
}

void check_scales(const pj_model_desc& d) {
  if (!(d.norm_eps >= 0.0f)) fail(PJ_BAD_ARGUMENT, "norm_eps is negative or not a number");
  check_finite("norm_eps", d.norm_eps);
  check_finite("attention_scale", d.attention_scale);
  check_finite("embedding_scale", d.embedding_scale);
  check_finite("residual_scale", d.residual_scale);
  check_finite("logit_scale", d.logit_scale);
  if (d.parallel && d.residual_scale != 1.0f) fail(PJ_BAD_ARGUMENT, "a parallel block has no residual_scale");
}

Rope check_rope(const pj_rope& rope, int index, int head_dim) {
  if (!rope.inv_freq || rope.rotary_dim < 2 || rope.rotary_dim % 2 || rope.rotary_dim > head_dim) {
    fail(PJ_BAD_ARGUMENT, "ropes.%d: %d rotated entries in heads of %d", index, rope.rotary_dim, head_dim);
  }
  Rope out{{rope.inv_freq, rope.inv_freq + rope.rotary_dim / 2}, rope.scale};
  for (float frequency : out.inv_freq) {
    if (!std::isfinite(frequency)) fail(PJ_BAD_ARGUMENT, "ropes.%d: a frequency is not finite", index);
  }
  if (!std::isfinite(rope.scale)) fail(PJ_BAD_ARGUMENT, "ropes.%d: scale is not finite", index);
  return out;
}

// Checks the parts of one layer (or of none) and names them in errors.
class Checker {
 public:
  explicit Checker(const pj_model_desc& desc, int layer = -1) : desc_(desc) {
    if (layer >= 0) prefix_ = "layers." + std::to_string(layer) + ".";
  }

  Matrix matrix(const char* part, const pj_matrix& m, int rows, int cols) const {
    const std::string name = prefix_ + part;
    const Matrix out = check_matrix(name.c_str(), m);
    if (!present(out)) fail(PJ_BAD_ARGUMENT, "%s: absent", name.c_str());
    if (m.rows != rows || m.cols != cols) {
      fail(PJ_BAD_ARGUMENT, "%s: %d outputs by %d inputs, where %d by %d fit", name.c_str(), m.rows, m.cols, rows,
           cols);
    }
    return out;
  }

  Matrix optional_matrix(const char* part, const pj_matrix& m, int rows, int cols) const {
    return m.kind == PJ_ABSENT ? Matrix{} : matrix(part, m, rows, cols);
  }

  Norm norm(const char* part, const pj_norm& n, bool bias_known) const {
    if (n.bias && !n.weight) fail(PJ_BAD_ARGUMENT, "%s%s: a bias without a weight", prefix_.c_str(), part);
    if (n.bias && !bias_known) fail(PJ_BAD_ARGUMENT, "%s%s: RMSNorm has no bias", prefix_.c_str(), part);
    if (reinterpret_cast<uintptr_t>(n.weight) % 4 || reinterpret_cast<uintptr_t>(n.bias) % 4) {
      fail(PJ_BAD_ARGUMENT, "%s%s: not aligned", prefix_.c_str(), part);
    }
    return Norm{n.weight, n.bias};
  }

  Norm block_norm(const char* part, const pj_norm& n) const { return norm(part, n, desc_.layer_norm != 0); }

  Norm qk_norm(const char* part, const pj_norm& n) const {
    if ((n.weight != nullptr) != (desc_.qk_norm != 0)) {
      fail(PJ_BAD_ARGUMENT, "%s%s: %s, but qk_norm is %d", prefix_.c_str(), part, n.weight ? "there" : "absent",
           desc_.qk_norm);
    }
    return norm(part, n, false);
  }

  void between(const char* part, int value, int low, int high) const {
    if (value < low || value > high) fail(PJ_BAD_ARGUMENT, "%s%s is %d", prefix_.c_str(), part, value);
  }

 private:
  const pj_model_desc& desc_;
  std::string prefix_;
};

Layer check_layer(const pj_model_desc& d, int index) {
  const Checker check(d, index);
  const pj_layer& in = d.layers[index];
  const int hidden = d.hidden_size, inner = d.intermediate_size;
  const int q_size = d.num_heads * d.head_dim, kv_size = d.num_kv_heads * d.head_dim;
  Layer out{};
  out.attn_norm = check.block_norm("attn_norm", in.attn_norm);
  out.attn_post_norm = check.block_norm("attn_post_norm", in.attn_post_norm);
  out.mlp_norm = check.block_norm("mlp_norm", in.mlp_norm);
  out.mlp_post_norm = check.block_norm("mlp_post_norm", in.mlp_post_norm);
  out.q_norm = check.qk_norm("q_norm", in.q_norm);
  out.k_norm = check.qk_norm("k_norm", in.k_norm);
  out.q = check.matrix("q", in.q, q_size, hidden);
  out.k = check.matrix("k", in.k, kv_size, hidden);
  out.v = check.matrix("v", in.v, kv_size, hidden);
  out.o = check.matrix("o", in.o, hidden, q_size);
  out.gate = check.optional_matrix("gate", in.gate, inner, hidden);
  out.up = check.matrix("up", in.up, inner, hidden);
  out.down = check.matrix("down", in.down, hidden, inner);
  check.between("rope", in.rope, -1, d.num_ropes - 1);
  check.between("window", in.window, 0, kMaxSize);
  if (d.parallel && (present(out.attn_post_norm) || present(out.mlp_post_norm))) {
    fail(PJ_BAD_ARGUMENT, "layers.%d: a parallel block has no post norms", index);
  }
  out.rope = in.rope;
  out.window = in.window;
  return out;
}

}  // namespace

Model check_model(const pj_model_desc& d) {
  if (d.struct_size != sizeof(pj_model_desc)) {
    fail(PJ_BAD_ARGUMENT, "a description of %u bytes, where this library reads %zu", d.struct_size, sizeof d);
  }
  check_sizes(d);
  check_scales(d);
  Model model{};
  model.vocab_size = d.vocab_size;
  model.hidden_size = d.hidden_size;
  model.intermediate_size = d.intermediate_size;
  model.num_heads = d.num_heads;
  model.num_kv_heads = d.num_kv_heads;
  model.head_dim = d.head_dim;
  model.layer_norm = d.layer_norm != 0;
  model.parallel = d.parallel != 0;
  model.qk_norm = static_cast<QkNorm>(d.qk_norm);
  model.activation = static_cast<pj_activation>(d.activation);
  model.norm_eps = d.norm_eps;
  model.attention_scale = d.attention_scale;
  model.embedding_scale = d.embedding_scale;
  model.residual_scale = d.residual_scale;
  model.logit_scale = d.logit_scale;

  const Checker check(d);
  model.embed = check.matrix("embed", d.embed, d.vocab_size, d.hidden_size);
  if (d.embed.bias) fail(PJ_BAD_ARGUMENT, "embed: an embedding has no bias");
  model.head = check.optional_matrix("head", d.head, d.vocab_size, d.hidden_size);
  if (!present(model.head)) model.head = model.embed;
  model.final_norm = check.block_norm("final_norm", d.final_norm);
  if (!present(model.final_norm)) fail(PJ_BAD_ARGUMENT, "final_norm: absent");
  for (int i = 0; i < d.num_ropes; ++i) model.ropes.push_back(check_rope(d.ropes[i], i, d.head_dim));
  model.layers.reserve(static_cast<size_t>(d.num_layers));
  for (int i = 0; i < d.num_layers; ++i) model.layers.push_back(check_layer(d, i));
  return model;
}

}  // namespace penjing
