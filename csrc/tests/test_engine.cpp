// The engine through its C ABI on a tiny random model, for the sanitizers: the same bytes for every number of threads
// and every split of a prompt, sessions side by side, a cancel from another thread, errors that leave a session usable,
// and 1000 openings whose memory comes back (LeakSanitizer counts it at the end).
#include <array>
#include <atomic>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "model/session.h"
#include "penjing.h"
#include "tests/check.h"
#include "tests/random_matrix.h"

namespace penjing {
namespace {

constexpr int kVocab = 101, kHidden = 48, kInner = 80, kLayers = 3, kHeads = 4, kKvHeads = 2, kHeadDim = 12;
constexpr int kContext = 400;
constexpr int kThreadCounts[] = {1, 2, 3, 5};

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
    matrices_.push_back(std::make_unique<RandomMatrix>(random_, rows, cols, bits, group_size, symmetric, bias, levels));
    const Matrix& m = matrices_.back()->matrix;
    return {m.data, m.scales, m.zeros, m.bias, m.book, PJ_CODES, rows, cols, bits, group_size, levels};
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

OpenSession open(const TinyModel& model, int threads, int context = kContext, int sequences = 1, int kind = PJ_F16) {
  pj_session* session = nullptr;
  check(pj_session_create(model.model(), context, sequences, threads, kind, &session) == PJ_OK, "a session opens");
  return OpenSession(session);
}

std::vector<int32_t> prompt_of(int length) {
  Random random(7);
  std::vector<int32_t> tokens(static_cast<size_t>(length));
  for (int32_t& token : tokens) token = random.below(kVocab);
  return tokens;
}

// Logits of every token, given in pieces of so many at a time.
std::vector<float> logits_of(pj_session* session, const std::vector<int32_t>& tokens, int piece) {
  std::vector<float> logits = poisoned(tokens.size() * kVocab);
  for (int at = 0, count = static_cast<int>(tokens.size()); at < count; at += piece) {
    const int now = std::min(piece, count - at);
    const int status = pj_forward(session, tokens.data() + at, nullptr, now, logits.data() + at * kVocab, now);
    check(status == PJ_OK, std::string("a pass: ") + pj_last_error());
  }
  return logits;
}

std::vector<float> logits_of_sequence(pj_session* session, int sequence, const std::vector<int32_t>& tokens) {
  const std::vector<int32_t> sequences(tokens.size(), sequence);
  std::vector<float> logits = poisoned(tokens.size() * kVocab);
  const int count = static_cast<int>(tokens.size());
  check(pj_forward(session, tokens.data(), sequences.data(), count, logits.data(), count) == PJ_OK, "one sequence");
  return logits;
}

void test_same_bytes(const TinyModel& model) {
  const std::vector<int32_t> tokens = prompt_of(150);  // more than one block of columns
  const std::vector<float> expected = logits_of(open(model, 1).get(), tokens, 1);
  for (int threads : kThreadCounts) {
    for (int piece : {1, 7, 128, 150}) {
      check(same(logits_of(open(model, threads).get(), tokens, piece), expected),
            std::to_string(threads) + " threads, " + std::to_string(piece) + " tokens at a time");
    }
  }
}

// Sequences that take tokens in turns, one forked halfway, one carried to another session: each as if it were alone.
void test_sequences(const TinyModel& model, int threads, int kind) {
  const std::vector<int32_t> tokens = prompt_of(90);
  const size_t half = 45, count = tokens.size();
  const std::vector<float> expected = logits_of(open(model, 1, kContext, 1, kind).get(), tokens, 90);
  const float* last = &expected[(count - 1) * kVocab];
  const OpenSession session = open(model, threads, kContext, 4, kind), other = open(model, 1, kContext, 1, kind);
  std::vector<int32_t> turns, sequences;
  const auto take_turns = [&](size_t begin, size_t end, int among, std::vector<float>& logits) {
    turns.clear(), sequences.clear();
    for (size_t i = begin; i < end; ++i) {
      for (int s = 0; s < among; ++s) turns.push_back(tokens[i]), sequences.push_back(s);
    }
    logits = poisoned(static_cast<size_t>(among) * kVocab);
    check(pj_forward(session.get(), turns.data(), sequences.data(), static_cast<int>(turns.size()), logits.data(),
                     among) == PJ_OK,
          "sequences in turns");
  };
  std::vector<float> logits;
  take_turns(0, half, 3, logits);
  check(pj_session_fork(session.get(), 1, 3, static_cast<int>(half)) == PJ_OK, "a fork");
  std::vector<uint8_t> state(pj_session_state_bytes(session.get(), static_cast<int>(half), 0));
  check(pj_session_export(session.get(), 3, state.data()) == PJ_OK, "a state goes out");
  check(pj_session_import(other.get(), 0, state.data(), static_cast<int>(half), 0) == PJ_OK, "and in");
  take_turns(half, count, 4, logits);
  for (size_t s = 0; s < 4; ++s) check(same(&logits[s * kVocab], last, kVocab), "one of four sequences");
  const std::vector<int32_t> rest(tokens.begin() + half, tokens.end());
  check(same(&logits_of(other.get(), rest, 9)[(rest.size() - 1) * kVocab], last, kVocab), "a sequence carried over");
}

// Owns what a pj_adapter points to: an addition to every matrix, of another rank in every layer.
class TinyAdapter {
 public:
  TinyAdapter(const TinyModel& model, uint64_t seed, int first_rank) : random_(seed) {
    for (int i = 0; i < kLayers; ++i) {
      const int rank = first_rank + i, q_size = kHeads * kHeadDim, kv_size = kKvHeads * kHeadDim;
      layers_.push_back({lora(q_size, kHidden, rank), lora(kv_size, kHidden, rank), lora(kv_size, kHidden, 0),
                         lora(kHidden, q_size, rank), lora(kInner, kHidden, rank), lora(kInner, kHidden, rank),
                         lora(kHidden, kInner, rank)});
    }
    check(pj_adapter_create(model.model(), layers_.data(), &adapter_) == PJ_OK, "an adapter is made");
  }
  ~TinyAdapter() { pj_adapter_free(adapter_); }
  TinyAdapter(const TinyAdapter&) = delete;
  TinyAdapter& operator=(const TinyAdapter&) = delete;

  const pj_adapter* adapter() const { return adapter_; }
  const std::vector<pj_adapter_layer>& layers() const { return layers_; }

 private:
  pj_lora lora(int rows, int cols, int rank) {
    if (rank == 0) return {};
    matrices_.push_back(std::make_unique<RandomMatrix>(random_, rows, rank, PJ_F32, false));
    a_.push_back(std::make_unique<std::vector<float>>(static_cast<size_t>(rank * cols)));
    for (float& value : *a_.back()) value = 0.02f * random_.normal();
    return {a_.back()->data(), matrices_.back()->matrix.data, PJ_F32, rank};
  }

  Random random_;
  std::vector<std::unique_ptr<RandomMatrix>> matrices_;
  std::vector<std::unique_ptr<std::vector<float>>> a_;
  std::vector<pj_adapter_layer> layers_;
  pj_adapter* adapter_ = nullptr;
};

// Two adapters and none in one session: each sequence as if it were alone.
void test_adapters(const TinyModel& model) {
  const TinyAdapter one(model, 5, 1), two(model, 6, 16);
  const pj_adapter* adapters[] = {nullptr, one.adapter(), two.adapter()};
  const std::vector<int32_t> tokens = prompt_of(150);
  std::vector<std::vector<float>> expected;
  for (const pj_adapter* adapter : adapters) {
    const OpenSession alone = open(model, 1);
    check(pj_session_use_adapter(alone.get(), 0, adapter) == PJ_OK, "an adapter is used");
    expected.push_back(logits_of(alone.get(), tokens, 1));
  }
  check(!same(expected[0], expected[1]) && !same(expected[1], expected[2]), "adapters change the answer");
  for (int threads : kThreadCounts) {
    const OpenSession session = open(model, threads, kContext, 3);
    for (int s = 0; s < 3; ++s) pj_session_use_adapter(session.get(), s, adapters[s]);
    std::vector<int32_t> turns, sequences;
    for (int32_t token : tokens) {
      for (int s = 0; s < 3; ++s) turns.push_back(token), sequences.push_back(s);
    }
    std::vector<float> logits = poisoned(turns.size() * kVocab);
    const int count = static_cast<int>(turns.size());
    check(pj_forward(session.get(), turns.data(), sequences.data(), count, logits.data(), count) == PJ_OK, "turns");
    bool ok = true;
    for (size_t i = 0; i < turns.size(); ++i) {
      ok = ok && same(&logits[i * kVocab], &expected[i % 3][i / 3 * kVocab], kVocab);
    }
    check(ok, "adapters side by side, " + std::to_string(threads) + " threads");
    check(pj_session_use_adapter(session.get(), 1, adapters[1]) == PJ_OK &&
              pj_session_length(session.get(), 1) == static_cast<int>(tokens.size()),
          "the same adapter again forgets nothing");
    check(pj_session_use_adapter(session.get(), 1, adapters[2]) == PJ_OK && pj_session_length(session.get(), 1) == 0,
          "another one forgets");
    check(same(logits_of_sequence(session.get(), 1, tokens), expected[2]), "swapped");
  }
}

void test_bad_adapters(const TinyModel& model) {
  const TinyAdapter good(model, 5, 2);
  const TinyModel other(4);
  const OpenSession session = open(other, 1);
  check(pj_session_use_adapter(session.get(), 0, good.adapter()) == PJ_BAD_ARGUMENT, "another model's adapter");
  check(pj_session_use_adapter(session.get(), 1, nullptr) == PJ_BAD_ARGUMENT, "no such sequence");
  pj_adapter* adapter = nullptr;
  const auto refused = [&](auto change, const char* what) {
    std::vector<pj_adapter_layer> layers = good.layers();
    change(layers[1].q);
    check(pj_adapter_create(model.model(), layers.data(), &adapter) == PJ_BAD_ARGUMENT && !adapter, what);
  };
  refused([](pj_lora& lora) { lora.rank = PJ_MAX_RANK + 1; }, "too large a rank");
  refused([](pj_lora& lora) { lora.rank = -1; }, "a negative rank");
  refused([](pj_lora& lora) { lora.kind = PJ_CODES; }, "an addition of codes");
  refused([](pj_lora& lora) { lora.a = nullptr; }, "no A");
  refused([](pj_lora& lora) { lora.b = nullptr; }, "no B");
  refused([](pj_lora& lora) { lora.a = static_cast<const char*>(lora.a) + 1; }, "A is not aligned");
  check(pj_adapter_create(model.model(), nullptr, &adapter) == PJ_BAD_ARGUMENT, "no layers");
}

// So many positions that a single column's heads are split evenly, beside a pass whose threads keep to their own heads.
void test_far_positions(const TinyModel& model) {
  constexpr int kFar = 4200, kLeast = kFar - PJ_WAY_BACK;
  const OpenSession expected = open(model, 1, kFar + 8);
  std::vector<uint8_t> state(pj_session_state_bytes(expected.get(), kFar, kLeast));
  Random random(13);
  for (size_t i = 0; i < state.size(); ++i)
    state[i] = static_cast<uint8_t>(i % 2 ? 0x30 : random.next());  // 1/8 and a little
  const std::vector<int32_t> tokens = prompt_of(6);
  check(pj_session_import(expected.get(), 0, state.data(), kFar, kLeast) == PJ_OK, "a far state");
  const std::vector<float> logits = logits_of(expected.get(), tokens, 6);
  for (int threads : {2, 3}) {
    const OpenSession session = open(model, threads, kFar + 8);
    check(pj_session_import(session.get(), 0, state.data(), kFar, kLeast) == PJ_OK, "a far state");
    check(same(logits_of(session.get(), tokens, 1), logits), std::to_string(threads) + " threads, far positions");
  }
}

// Layers that keep a part of a long text against a session in which every layer keeps all of it: logits, and what is
// left to go back to after truncating, forking and carrying out and in.
class RingTest {
 public:
  RingTest(const TinyModel& model, pj_kind kind)
      : model_(model), kind_(kind), tokens_(prompt_of(kLength)), expected_(poisoned(tokens_.size() * kVocab)) {
    const Model checked = check_model(model.description());
    Session whole(checked, kLength, 1, 1, kind, kLength);
    forward(whole, tokens_.data(), nullptr, kLength, expected_.data(), kLength);
    check(pj_session_bytes(open(model, 1, kLength, 1, kind).get()) < whole.bytes(), "rings are smaller");
    whole_bytes_ = state_bytes(whole, kLength, 0);
    whole.least[0] = kLeast;  // what a ring would carry out
    state_.resize(state_bytes(whole, kLength, kLeast));
    export_state(whole, 0, state_.data());
  }

  void run(int threads, int piece) const {
    const std::string name = std::to_string(threads) + " threads, " + std::to_string(piece) + " tokens at a time";
    const OpenSession session = open(model_, threads, kLength, 2, kind_);
    check(goes_on(session.get(), 0, 0, piece), "rings, " + name);
    check(pj_session_least(session.get(), 0) == kLeast, "how far back, " + name);
    check(pj_session_truncate(session.get(), 0, kLeast - 1) == PJ_FORGOTTEN &&
              pj_session_length(session.get(), 0) == kLength,
          "too far back, " + name);
    check(pj_session_fork(session.get(), 0, 1, kLeast - 1) == PJ_FORGOTTEN && pj_session_length(session.get(), 1) == 0,
          "too far back for a fork, " + name);
    for (int length : {kLength - 1, kLeast}) {
      check(pj_session_fork(session.get(), 0, 1, length) == PJ_OK && pj_session_least(session.get(), 1) == kLeast &&
                goes_on(session.get(), 1, length, piece),
            "a fork of " + std::to_string(length) + ", " + name);
      carried(session.get(), length, piece, name);
      check(pj_session_truncate(session.get(), 0, length) == PJ_OK && goes_on(session.get(), 0, length, piece),
            "back to " + std::to_string(length) + ", " + name);
    }
    check(pj_session_fork(session.get(), 0, 0, kLeast) == PJ_OK && goes_on(session.get(), 0, kLeast, piece),
          "a fork in place, " + name);
    check(pj_session_truncate(session.get(), 0, 0) == PJ_OK && pj_session_least(session.get(), 0) == 0 &&
              goes_on(session.get(), 0, 0, piece),
          "from the start, " + name);
  }

 private:
  static constexpr int kLength = 700, kLeast = kLength - PJ_WAY_BACK;

  // Whether a sequence of `length` tokens takes the rest of the text as it should.
  bool goes_on(pj_session* session, int sequence, int length, int piece) const {
    std::vector<float> logits = poisoned(static_cast<size_t>(kLength) * kVocab);
    const std::vector<int32_t> sequences(tokens_.size(), sequence);
    for (int at = length; at < kLength; at += piece) {
      const int now = std::min(piece, kLength - at);
      if (pj_forward(session, &tokens_[at], sequences.data(), now, &logits[at * kVocab], now) != PJ_OK) return false;
    }
    return same(&logits[length * kVocab], &expected_[length * kVocab], (kLength - length) * kVocab);
  }

  // What sequence 0 holds, cut to `length`, goes on in sessions of other sizes, and can be cut further there.
  void carried(pj_session* session, int length, int piece, const std::string& name) const {
    const size_t bytes = pj_session_state_bytes(session, kLength, kLeast);
    std::vector<uint8_t> state(bytes, 0xab), again(bytes, 0xcd);
    check(bytes > 0 && bytes < whole_bytes_, "a state is smaller");
    check(pj_session_export(session, 0, state.data()) == PJ_OK && state == state_, "a state goes out");
    for (int context : {kLength, kLength + 200}) {
      const OpenSession other = open(model_, 2, context, 1, kind_);
      const std::vector<int32_t> replaced(static_cast<size_t>(context), 5);
      check(pj_forward(other.get(), replaced.data(), nullptr, context, nullptr, 0) == PJ_OK, "what is replaced");
      check(pj_session_state_bytes(other.get(), kLength, kLeast - 1) == 0 &&
                pj_session_import(other.get(), 0, state.data(), kLength, kLeast - 1) == PJ_BAD_ARGUMENT &&
                pj_session_import(other.get(), 0, state.data(), kLength, kLength + 1) == PJ_BAD_ARGUMENT,
            "a state that cannot be");
      check(pj_session_import(other.get(), 0, state.data(), kLength, kLeast) == PJ_OK &&
                pj_session_least(other.get(), 0) == kLeast,
            "a state goes in");
      check(pj_session_export(other.get(), 0, again.data()) == PJ_OK && again == state, "the same state goes out");
      check(pj_session_truncate(other.get(), 0, kLeast - 1) == PJ_FORGOTTEN, "too far back in what came in");
      check(pj_session_truncate(other.get(), 0, length) == PJ_OK && goes_on(other.get(), 0, length, piece),
            "carried over, " + std::to_string(length) + ", " + name);
    }
  }

  const TinyModel& model_;
  const pj_kind kind_;
  const std::vector<int32_t> tokens_;
  std::vector<float> expected_;
  std::vector<uint8_t> state_;
  size_t whole_bytes_ = 0;
};

void test_rings() {
  // Rings of 384, 320 and 320 positions; 65 needs every one of 320, 66 one more.
  const TinyModel model(9, {66, 65, 9}), mixed(9, {0, 1, 129});
  for (pj_kind kind : {PJ_F16, PJ_F32, PJ_I8}) {
    const RingTest test(model, kind), test_mixed(mixed, kind);
    test.run(1, 700);
    test.run(3, kind == PJ_F16 ? 7 : 128);
    test_mixed.run(3, 129);
  }
}

// Sequences of other lengths in one block, each in rings of its own.
void test_rings_in_turns(int threads) {
  const TinyModel model(9, {70, 0, 9});
  const std::vector<int32_t> tokens = prompt_of(600);
  const std::vector<float> expected = logits_of(open(model, 1, 600).get(), tokens, 128);
  const OpenSession session = open(model, threads, 600, 3);
  std::vector<int32_t> turns, sequences;
  std::vector<size_t> at(3), rows;
  for (size_t i = 0; turns.size() < 3 * tokens.size(); ++i) {
    const size_t s = i % 7 % 3;
    if (at[s] == tokens.size()) continue;
    turns.push_back(tokens[at[s]]), sequences.push_back(static_cast<int32_t>(s)), rows.push_back(at[s]++);
  }
  std::vector<float> logits = poisoned(turns.size() * kVocab);
  const int count = static_cast<int>(turns.size());
  check(pj_forward(session.get(), turns.data(), sequences.data(), count, logits.data(), count) == PJ_OK, "turns");
  bool ok = true;
  for (size_t i = 0; i < rows.size(); ++i) {
    ok = ok && same(&logits[i * kVocab], &expected[rows[i] * kVocab], kVocab);
  }
  check(ok, "rings in turns, " + std::to_string(threads) + " threads");
}

void test_side_by_side(const TinyModel& model) {
  const std::vector<int32_t> tokens = prompt_of(60);
  const std::vector<float> expected = logits_of(open(model, 1).get(), tokens, 60);
  std::vector<std::vector<float>> got(3);
  std::vector<std::thread> callers;
  for (std::vector<float>& logits : got) {
    callers.emplace_back([&] { logits = logits_of(open(model, 2).get(), tokens, 20); });
  }
  for (std::thread& caller : callers) caller.join();
  for (const std::vector<float>& logits : got) check(same(logits, expected), "sessions side by side");
}

void test_cancel(const TinyModel& model, int threads) {
  const std::vector<int32_t> tokens = prompt_of(kContext - 50), first = prompt_of(20);
  const OpenSession session = open(model, threads);
  logits_of(session.get(), first, 20);
  std::atomic<bool> done{false};
  std::thread canceller([&] {
    while (!done.load()) pj_session_cancel(session.get());
  });
  int status = PJ_OK;
  for (int attempt = 0; attempt < 50 && status == PJ_OK; ++attempt) {  // a slow start of the canceller may miss one
    pj_session_truncate(session.get(), 0, static_cast<int>(first.size()));
    status = pj_forward(session.get(), tokens.data(), nullptr, static_cast<int>(tokens.size()), nullptr, 0);
  }
  done.store(true);
  canceller.join();
  check(status == PJ_CANCELLED, "a cancel arrives");
  check(pj_session_length(session.get(), 0) == static_cast<int>(first.size()),
        "a cancelled pass leaves the length alone");
  const OpenSession untouched = open(model, 1);
  logits_of(untouched.get(), first, 20);
  check(same(logits_of(session.get(), first, 5), logits_of(untouched.get(), first, 20)),
        "it goes on as if nothing was");
}

void test_errors(const TinyModel& model) {
  const OpenSession session = open(model, 2, 8), untouched = open(model, 2, 8);
  const std::vector<int32_t> tokens = prompt_of(9);
  const int32_t outside[] = {0, kVocab}, negative[] = {-1};
  check(pj_forward(session.get(), tokens.data(), nullptr, 9, nullptr, 0) == PJ_CONTEXT_FULL, "too many tokens");
  check(pj_forward(session.get(), tokens.data(), nullptr, 0, nullptr, 0) == PJ_BAD_ARGUMENT, "no tokens");
  check(pj_forward(session.get(), outside, nullptr, 2, nullptr, 0) == PJ_BAD_ARGUMENT, "a token past the vocabulary");
  check(pj_forward(session.get(), negative, nullptr, 1, nullptr, 0) == PJ_BAD_ARGUMENT, "a negative token");
  check(pj_session_truncate(session.get(), 0, 1) == PJ_BAD_ARGUMENT, "more kept than there is");
  check(pj_session_length(session.get(), 0) == 0, "errors leave the length alone");
  const std::vector<int32_t> few(tokens.begin(), tokens.begin() + 8);
  check(same(logits_of(session.get(), few, 8), logits_of(untouched.get(), few, 8)), "usable after errors");
}

void test_open_close(const TinyModel& model, int times) {
  for (int i = 0; i < times; ++i) {
    pj_model* again = nullptr;
    pj_session* session = nullptr;
    const int32_t token = i % kVocab;
    const bool opened = pj_model_create(&model.description(), &again) == PJ_OK &&
                        pj_session_create(again, 16, 1, 1 + i % 3, i % 2 ? PJ_F16 : PJ_F32, &session) == PJ_OK;
    if (!opened || pj_forward(session, &token, nullptr, 1, nullptr, 0) != PJ_OK) check(false, "opening again");
    pj_session_free(session);
    pj_model_free(again);
  }
  pj_model* broken = nullptr;  // what is half made when it fails goes too
  pj_model_desc desc = model.description();
  desc.num_layers = kLayers;
  desc.final_norm = {};
  check(pj_model_create(&desc, &broken) == PJ_BAD_ARGUMENT && !broken, "a model without its last norm");
}

}  // namespace
}  // namespace penjing

int main() {
  using namespace penjing;
  std::printf("%s\n", pj_isa());
  const TinyModel model(3);
  if (counts().failed) return 1;
  test_same_bytes(model);
  test_far_positions(model);
  test_side_by_side(model);
  test_adapters(model);
  test_bad_adapters(model);
  for (int kind : {PJ_F16, PJ_F32, PJ_I8}) {
    for (int threads : {1, 3}) test_sequences(model, threads, kind);
  }
  test_rings();
  for (int threads : {1, 3}) test_rings_in_turns(threads);
  const TinyModel without_windows(3, {0, 0, 0});
  for (int threads : {1, 2, 4}) test_cancel(without_windows, threads);
  test_errors(model);
  test_open_close(model, 1000);
  std::printf("%d passed, %d failed\n", counts().passed, counts().failed);
  return counts().failed ? 1 : 0;
}
