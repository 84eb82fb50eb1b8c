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

#include "tests/tiny_model.h"

namespace penjing {
namespace {

std::vector<float> logits_of_sequence(pj_session* session, int sequence, const std::vector<int32_t>& tokens) {
  const std::vector<int32_t> sequences(tokens.size(), sequence);
  std::vector<float> logits = poisoned(tokens.size() * kVocab);
  const int count = static_cast<int>(tokens.size());
  check(pj_forward(session, tokens.data(), sequences.data(), count, logits.data(), count) == PJ_OK, "one sequence");
  return logits;
}

void test_same_bytes(const TinyModel& model) {
  const std::vector<int32_t> tokens = prompt_of(330);  // more than threads take at once, together or apart
  const std::vector<float> expected = logits_of(open(model, 1).get(), tokens, 1);
  for (int threads : kThreadCounts) {
    for (int piece : {1, 7, 128, 150, 330}) {
      check(same(logits_of(open(model, threads).get(), tokens, piece), expected),
            std::to_string(threads) + " threads, " + std::to_string(piece) + " tokens at a time");
    }
  }
}

// Where only the last logits are asked for, what is left out for the others shows neither in these nor in what follows.
void test_few_logits(const TinyModel& model) {
  const std::vector<int32_t> tokens = prompt_of(330);
  const std::vector<float> expected = logits_of(open(model, 1).get(), tokens, 330);
  for (int threads : kThreadCounts) {
    for (int first : {1, 5, 100, 129, 257, 300}) {
      for (int wanted : {0, 1, 3, 32, 33}) {
        if (wanted > first) continue;
        const OpenSession session = open(model, threads);
        std::vector<float> logits = poisoned(static_cast<size_t>(wanted + 1) * kVocab);  // the last of them stay so
        check(pj_forward(session.get(), tokens.data(), nullptr, first, logits.data(), wanted) == PJ_OK, "a prompt");
        const std::vector<int32_t> rest(tokens.begin() + first, tokens.end());
        const std::vector<float> after = logits_of(session.get(), rest, 330);
        const size_t written = static_cast<size_t>(wanted) * kVocab;
        check(same(logits.data(), &expected[static_cast<size_t>(first) * kVocab - written], written) &&
                  is_poison(logits[written]) &&
                  same(after.data(), &expected[static_cast<size_t>(first) * kVocab], after.size()),
              std::to_string(threads) + " threads, " + std::to_string(wanted) + " logits of " + std::to_string(first));
      }
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
  test_team();
  const TinyModel model(3);
  if (counts().failed) return 1;
  test_same_bytes(model);
  test_few_logits(model);
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
