// Sequences apart from a forward pass: forgotten in part, copied, carried out and in.
#include <cstring>

#include "model/session.h"
#include "ops/error.h"

namespace penjing {
namespace {

size_t num_heads(const Session& session) {
  return session.model.layers.size() * static_cast<size_t>(session.model.num_kv_heads);
}

// The arrays of one head as far as `length` positions reach: visit(member of KvHead, bytes).
template <class Visit>
void for_each_array(const Session& session, int length, Visit visit) {
  const size_t row = static_cast<size_t>(session.model.head_dim) * kv_element_bytes(session.kv_kind);
  visit(&KvHead::keys, static_cast<size_t>(padded(length)) * row);
  visit(&KvHead::values, static_cast<size_t>(length) * row);
  if (session.kv_kind != PJ_I8) return;
  visit(&KvHead::key_scales, static_cast<size_t>(length) * sizeof(float));
  visit(&KvHead::value_scales, static_cast<size_t>(length) * sizeof(float));
}

// The last block of keys has lanes past the end, which may still hold what was forgotten.
void clear_past_end(const Session& session, int length, uint8_t* keys) {
  const size_t element = kv_element_bytes(session.kv_kind), used = static_cast<size_t>(length % PJ_LANES);
  if (used == 0) return;
  const size_t dim = static_cast<size_t>(session.model.head_dim);
  uint8_t* block = keys + static_cast<size_t>(length / PJ_LANES) * dim * PJ_LANES * element;
  for (size_t d = 0; d < dim; ++d) {
    std::memset(block + (d * PJ_LANES + used) * element, 0, (PJ_LANES - used) * element);
  }
}

}  // namespace

int check_sequence(const Session& session, int sequence) {
  if (sequence < 0 || sequence >= session.num_sequences) {
    fail(PJ_BAD_ARGUMENT, "sequence %d of %d, numbered from 0", sequence, session.num_sequences);
  }
  return sequence;
}

void truncate(Session& session, int sequence, int length) {
  int& held = session.lengths[static_cast<size_t>(check_sequence(session, sequence))];
  if (length < 0 || length > held) fail(PJ_BAD_ARGUMENT, "cannot keep %d tokens of %d", length, held);
  held = length;
}

// A copy: it costs a hundredth of what computing the tokens cost, so blocks shared by sequences would not pay.
void fork(Session& session, int from, int to, int length) {
  const int held = session.lengths[static_cast<size_t>(check_sequence(session, from))];
  if (length < 0 || length > held) fail(PJ_BAD_ARGUMENT, "cannot fork %d tokens of %d", length, held);
  session.lengths[static_cast<size_t>(check_sequence(session, to))] = length;
  session.adapters[static_cast<size_t>(to)] = session.adapters[static_cast<size_t>(from)];
  if (from == to) return;
  for (size_t i = 0; i < num_heads(session); ++i) {
    const KvHead &source = session.cache(from)[i], &target = session.cache(to)[i];
    for_each_array(session, length,
                   [&](auto array, size_t bytes) { std::memcpy(target.*array, source.*array, bytes); });
  }
}

void use_adapter(Session& session, int sequence, const Adapter* adapter) {
  const Adapter*& used = session.adapters[static_cast<size_t>(check_sequence(session, sequence))];
  if (adapter && &adapter->model != &session.model) fail(PJ_BAD_ARGUMENT, "the adapter was made for another model");
  if (used != adapter) session.lengths[static_cast<size_t>(sequence)] = 0;
  used = adapter;
}

size_t state_bytes(const Session& session, int length) {
  if (length < 0 || length > session.max_context) return 0;
  size_t total = 0;
  for_each_array(session, length, [&](auto, size_t bytes) { total += bytes; });
  return total * num_heads(session);
}

void export_state(const Session& session, int sequence, uint8_t* state) {
  const int length = session.lengths[static_cast<size_t>(check_sequence(session, sequence))];
  for (size_t i = 0; i < num_heads(session); ++i) {
    uint8_t* keys = state;  // they come first
    for_each_array(session, length, [&](auto array, size_t bytes) {
      std::memcpy(state, session.cache(sequence)[i].*array, bytes);
      state += bytes;
    });
    clear_past_end(session, length, keys);
  }
}

void import_state(Session& session, int sequence, const uint8_t* state, int length) {
  check_sequence(session, sequence);
  if (length < 0 || length > session.max_context) {
    fail(PJ_CONTEXT_FULL, "%d tokens do not fit a context of %d", length, session.max_context);
  }
  for (size_t i = 0; i < num_heads(session); ++i) {
    for_each_array(session, length, [&](auto array, size_t bytes) {
      std::memcpy(session.cache(sequence)[i].*array, state, bytes);
      state += bytes;
    });
  }
  session.lengths[static_cast<size_t>(sequence)] = length;
}

}  // namespace penjing
