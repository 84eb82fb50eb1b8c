// pj_forward: a prompt goes through the layers in blocks of columns.
#include "model/pass.h"
#include "ops/error.h"

namespace penjing {
namespace {

void run_blocks(Session& session, Call& call, int thread) {
  for (int first = 0; first < call.num_tokens && !call.cancelled; first += kBlockColumns) {
    const int num_columns = std::min(kBlockColumns, call.num_tokens - first);
    if (thread == 0) {
      const int spread = num_columns == 1 ? 0 : 1;  // one column: its heads are the queries, all at one position
      const int count = num_columns == 1 ? session.model.num_heads : num_columns;
      for (int i = 0; i < count; ++i) session.positions[i] = session.length + first + i * spread;
    }
    Pass(session, call, thread, first, num_columns).run();
    // The next block may share out its columns otherwise: nobody writes one while another thread still reads it.
    if (first + num_columns < call.num_tokens) session.team.barrier();
  }
}

void check_tokens(const Session& session, const int32_t* tokens, int num_tokens, const float* logits, int num_logits) {
  if (!tokens || num_tokens < 1) fail(PJ_BAD_ARGUMENT, "no tokens");
  if (num_logits < 0 || num_logits > num_tokens) {
    fail(PJ_BAD_ARGUMENT, "%d logits wanted of %d tokens", num_logits, num_tokens);
  }
  if (num_logits > 0 && !logits) fail(PJ_BAD_ARGUMENT, "nowhere to write the logits");
  for (int i = 0; i < num_tokens; ++i) {
    if (tokens[i] < 0 || tokens[i] >= session.model.vocab_size) {
      fail(PJ_BAD_ARGUMENT, "token %d (number %d) is outside the vocabulary of %d", tokens[i], i,
           session.model.vocab_size);
    }
  }
  if (num_tokens > session.max_context - session.length) {
    fail(PJ_CONTEXT_FULL, "%d tokens after %d do not fit a context of %d", num_tokens, session.length,
         session.max_context);
  }
}

}  // namespace

void forward(Session& session, const int32_t* tokens, int num_tokens, float* logits, int num_logits) {
  check_tokens(session, tokens, num_tokens, logits, num_logits);
  session.cancelled.store(false, std::memory_order_relaxed);
  Call call{tokens, num_tokens, logits, num_logits};
  session.team.run([&](int thread) { run_blocks(session, call, thread); });
  if (call.cancelled) fail(PJ_CANCELLED, "cancelled");
  if (call.not_finite) fail(PJ_NOT_FINITE, "the model's output is not finite");
  session.length += num_tokens;
}

}  // namespace penjing
