// A tiny random model behind the C ABI, sessions of it, and its logits: what the engine's tests share.
#pragma once
#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "penjing.h"
#include "tests/check.h"
#include "tests/random_matrix.h"

namespace penjing {

constexpr int kVocab = 101, kHidden = 48, kInner = 80, kLayers = 3, kHeads = 4, kKvHeads = 2, kHeadDim = 12;
constexpr int kContext = 400;
constexpr int kThreadCounts[] = {1, 2, 3, 4, 5};

// Owns what a pj_model_desc points to.
class TinyModel {
 public:
  explicit TinyModel(uint64_t seed, std::array<int, kLayers> windows = {0, 0, 9})
      : random_(seed), inv_freq_{1.0f, 0.2f, 0.05f, 0.01f, 0.003f, 0.001f} {
    layers_.resize(kLayers);
    for (int i = 0; i < kLayers; ++i) {
      const int bits[] = {4, 3, 8};
      pj_layer& layer = layers_[static_cast<size_t>(i)];
      layer = {};
      layer.attn_norm = {norm(kHidden), nullptr};
      layer.mlp_norm = {norm(kHidden), nullptr};
      layer.q = codes(kHeads * kHeadDim, kHidden, bits[i], 24, true);
      layer.k = codes(kKvHeads * kHeadDim, kHidden, bits[i], 48, false);
      layer.v = codes(kKvHeads * kHeadDim, kHidden, 6, 16, false);
      layer.o = codes(kHidden, kHeads * kHeadDim, bits[i], 48, false);
      layer.gate = codes(kInner, kHidden, 5, 24, false);
      layer.up = codes(kInner, kHidden, bits[i], 24, false);
      layer.down = codes(kHidden, kInner, 2, 80, true, i == 0 ? PJ_TERNARY : i == 1 ? PJ_BOOK : PJ_UNIFORM);
      layer.rope = i == 1 ? -1 : 0;
      layer.window = windows[static_cast<size_t>(i)];
    }
    desc_.struct_size = sizeof desc_;
    desc_.vocab_size = kVocab;
    desc_.hidden_size = kHidden;
    desc_.intermediate_size = kInner;
    desc_.num_layers = kLayers;
    desc_.num_heads = kHeads;
    desc_.num_kv_heads = kKvHeads;
    desc_.head_dim = kHeadDim;
    desc_.norm_eps = 1e-5f;
    desc_.attention_scale = 0.3f;
    desc_.embedding_scale = desc_.residual_scale = desc_.logit_scale = 1.0f;
    desc_.num_ropes = 1;
    desc_.ropes[0] = {inv_freq_.data(), 2 * static_cast<int32_t>(inv_freq_.size()), 1.0f};
    desc_.embed = codes(kVocab, kHidden, 8, 48, false);
    desc_.final_norm = {norm(kHidden), nullptr};
    desc_.layers = layers_.data();
    check(pj_model_create(&desc_, &model_) == PJ_OK, std::string("the model opens: ") + pj_last_error());
  }
  ~TinyModel() { pj_model_free(model_); }
  TinyModel(const TinyModel&) = delete;
  TinyModel& operator=(const TinyModel&) = delete;

  const pj_model* model() const { return model_; }
  const pj_model_desc& description() const { return desc_; }

 private:
  pj_matrix codes(int rows, int cols, int bits, int group_size, bool bias, pj_levels levels = PJ_UNIFORM) {
    const bool symmetric = bits % 2 == 0;
    const int scale_bytes = levels == PJ_UNIFORM ? 2 : 1;
    matrices_.push_back(
        std::make_unique<RandomMatrix>(random_, rows, cols, bits, group_size, symmetric, bias, levels, scale_bytes));
    const Matrix& m = matrices_.back()->matrix;
    return {m.data, m.scales, m.zeros, m.bias,     m.book, PJ_CODES,
            rows,   cols,     bits,    group_size, levels, 8 * m.scale_bytes};
  }
  const float* norm(int size) {
    norms_.push_back(std::make_unique<std::vector<float>>(size));
    for (float& weight : *norms_.back()) weight = 1.0f + 0.2f * random_.normal();
    return norms_.back()->data();
  }

  Random random_;
  std::vector<float> inv_freq_;
  std::vector<std::unique_ptr<RandomMatrix>> matrices_;
  std::vector<std::unique_ptr<std::vector<float>>> norms_;
  std::vector<pj_layer> layers_;
  pj_model_desc desc_ = {};
  pj_model* model_ = nullptr;
};

struct SessionFree {
  void operator()(pj_session* session) const { pj_session_free(session); }
};
using OpenSession = std::unique_ptr<pj_session, SessionFree>;

inline OpenSession open(const TinyModel& model, int threads, int context = kContext, int sequences = 1,
                        int kind = PJ_F16) {
  pj_session* session = nullptr;
  check(pj_session_create(model.model(), context, sequences, threads, kind, &session) == PJ_OK, "a session opens");
  return OpenSession(session);
}

inline std::vector<int32_t> prompt_of(int length) {
  Random random(7);
  std::vector<int32_t> tokens(static_cast<size_t>(length));
  for (int32_t& token : tokens) token = random.below(kVocab);
  return tokens;
}

// Logits of every token, given in pieces of so many at a time.
inline std::vector<float> logits_of(pj_session* session, const std::vector<int32_t>& tokens, int piece) {
  std::vector<float> logits = poisoned(tokens.size() * kVocab);
  for (int at = 0, count = static_cast<int>(tokens.size()); at < count; at += piece) {
    const int now = std::min(piece, count - at);
    const int status = pj_forward(session, tokens.data() + at, nullptr, now, logits.data() + at * kVocab, now);
    check(status == PJ_OK, std::string("a pass: ") + pj_last_error());
  }
  return logits;
}

void test_team();
void test_rings();
void test_rings_in_turns(int threads);

}  // namespace penjing
