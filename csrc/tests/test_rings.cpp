// Layers with windows, which keep only a part of a long text.
#include <memory>
#include <string>
#include <vector>

#include "model/session.h"
#include "tests/tiny_model.h"

namespace penjing {
namespace {

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

}  // namespace

void test_rings() {
  // Rings of 384, 320 and 320 positions; 65 needs every one of 320, 66 one more.
  const TinyModel model(9, {66, 65, 9}), mixed(9, {0, 1, 129});
  for (pj_kind kind : {PJ_F16, PJ_F32, PJ_I8}) {
    const RingTest test(model, kind), test_mixed(mixed, kind);
    test.run(1, 700);
    test.run(2, 700);  // threads go apart, and store as much at once as a ring holds beyond its window
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

}  // namespace penjing
