// pj_forward: tokens become columns, which go through the layers in blocks.
#include "model/pass.h"
#include "ops/error.h"

namespace penjing {
namespace {

// Columns that go through the layers together, and whether threads take them apart.
struct BlockOfColumns {
  Range columns;
  bool apart;
};

BlockOfColumns block_at(const Session& session, int first, int num_columns) {
  const int left = num_columns - first;
  const bool apart = session.can_go_apart() && left >= session.team.size() * kLeastApart;
  return {{first, first + std::min(left, apart ? kApartColumns : kBlockColumns)}, apart};
}

// Later columns see more. Of twice as many runs as threads, a thread takes one from the middle outwards to either side,
// so that each sees as much as the others; the last thread the outermost, so that the last columns stay the last.
void fold(const Session& session, Column* columns, int count) {
  const int num_threads = session.team.size();
  Column* out = session.folded;
  for (int thread = 0; thread < num_threads; ++thread) {
    for (int run : {num_threads - 1 - thread, num_threads + thread}) {
      const Range own = split(count, 2 * num_threads, run);
      out = std::copy(columns + own.begin, columns + own.end, out);
    }
  }
  std::copy(session.folded, out, columns);
}

void run_blocks(Session& session, Call& call, int thread) {
  const int num_threads = session.team.size();
  for (int first = 0, next; first < call.num_columns; first = next) {
    auto [columns, apart] = block_at(session, first, call.num_columns);
    next = columns.end;
    if (apart) {
      const Range own = split(columns.size(), num_threads, thread);
      columns = {first + own.begin, first + own.end};
    }
    if (!Pass(session, call, thread, columns, apart).run()) return;
    // The next block may share out its columns otherwise: nobody writes one while another thread still reads it.
    if (next < call.num_columns) session.team.barrier();
  }
}

void check_logits(int num_tokens, const float* logits, int num_logits) {
  if (num_logits < 0 || num_logits > num_tokens) {
    fail(PJ_BAD_ARGUMENT, "%d logits wanted of %d tokens", num_logits, num_tokens);
  }
  if (num_logits > 0 && !logits) fail(PJ_BAD_ARGUMENT, "nowhere to write the logits");
}

// session.call_columns and next_lengths. Each column's position is the length of its sequence by then.
void lay_out_columns(Session& session, const int32_t* tokens, const int32_t* sequences, int num_tokens) {
  session.next_lengths = session.lengths;  // of one size: nothing is allocated
  for (int i = 0; i < num_tokens; ++i) {
    if (tokens[i] < 0 || tokens[i] >= session.model.vocab_size) {
      fail(PJ_BAD_ARGUMENT, "token %d (number %d) is outside the vocabulary of %d", tokens[i], i,
           session.model.vocab_size);
    }
    const int sequence = check_sequence(session, sequences ? sequences[i] : 0);
    int& length = session.next_lengths[static_cast<size_t>(sequence)];
    if (length == session.max_context) {
      const int count =
          sequences ? static_cast<int>(std::count(sequences, sequences + num_tokens, sequence)) : num_tokens;
      fail(PJ_CONTEXT_FULL, "%d tokens after %d do not fit a context of %d", count,
           session.lengths[static_cast<size_t>(sequence)], session.max_context);
    }
    session.call_columns[i] = {tokens[i], length++, session.cache(sequence),
                               session.adapters[static_cast<size_t>(sequence)]};
  }
}

// So far the caches have been written, over what was there in rings.
void overwrite(Session& session, const std::vector<int>& ends) {
  for (size_t s = 0; s < ends.size(); ++s) session.least[s] = std::max(session.least[s], session.least_after(ends[s]));
}

// A call that failed wrote what nobody wants; where rings are short of something for it, a sequence begins afresh.
void take_back(Session& session) {
  overwrite(session, session.next_lengths);
  for (size_t s = 0; s < session.lengths.size(); ++s) {
    if (session.lengths[s] < session.least[s]) session.lengths[s] = session.least[s] = 0;
  }
}

}  // namespace

void forward(Session& session, const int32_t* tokens, const int32_t* sequences, int num_tokens, float* logits,
             int num_logits) {
  if (!tokens || num_tokens < 1) fail(PJ_BAD_ARGUMENT, "no tokens");
  check_logits(num_tokens, logits, num_logits);
  lay_out_columns(session, tokens, sequences, num_tokens);
  session.cancelled.store(false, std::memory_order_relaxed);
  const bool adapted = std::any_of(session.call_columns, session.call_columns + num_tokens,
                                   [](const Column& column) { return column.adapter != nullptr; });
  // no thread takes fewer than kLeastApart, so the last half of that is one run
  for (int first = 0; first < num_tokens && num_logits <= kLeastApart / 2;) {
    const auto [columns, apart] = block_at(session, first, num_tokens);
    if (apart) fold(session, session.call_columns + first, columns.size());
    first = columns.end;
  }
  Call call{session.call_columns, num_tokens, logits, num_logits, adapted};
  session.team.run([&](int thread) { run_blocks(session, call, thread); });
  const bool cancelled = call.cancelled[0] || call.cancelled[1];
  if (cancelled || call.not_finite) take_back(session);
  if (cancelled) fail(PJ_CANCELLED, "cancelled");
  if (call.not_finite) fail(PJ_NOT_FINITE, "the model's output is not finite");
  session.lengths.swap(session.next_lengths);
  overwrite(session, session.lengths);
}

}  // namespace penjing
