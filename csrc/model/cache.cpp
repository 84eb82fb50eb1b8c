// Sequences apart from a forward pass: forgotten in part, copied, carried out and in.
#include <algorithm>
#include <cstring>

#include "model/session.h"
#include "ops/error.h"
#include "ops/range.h"

namespace penjing {
namespace {

size_t num_heads(const Session& session) {
  return session.model.layers.size() * static_cast<size_t>(session.model.num_kv_heads);
}

size_t row_bytes(const Session& session) {
  return static_cast<size_t>(session.model.head_dim) * kv_element_bytes(session.kv_kind);
}

// What head number i keeps for a sequence that can be cut to `least` tokens: a window's positions before them.
Range kept(const Session& session, size_t i, int length, int least) {
  const int window = session.model.layers[i / static_cast<size_t>(session.model.num_kv_heads)].window;
  return {window > 0 ? std::max(0, least - window + 1) : 0, length};
}

// Whole blocks of keys.
Range whole_blocks(Range positions) { return {positions.begin / PJ_LANES * PJ_LANES, padded(positions.end)}; }

// Runs of positions that lie side by side: visit(the first one's place, how many).
template <class Visit>
void for_each_run(const KvHead& head, Range positions, Visit visit) {
  for (int count; !positions.empty(); positions.begin += count) {
    const int place = place_of(head, positions.begin);
    count = std::min(positions.size(), head.capacity - place);
    visit(static_cast<size_t>(place), static_cast<size_t>(count));
  }
}

void copy(const Session& session, const KvHead& from, const KvHead& to, Range positions) {
  const size_t row = row_bytes(session);
  for_each_run(from, whole_blocks(positions), [&](size_t place, size_t count) {
    const auto copy_rows = [&](auto array, size_t bytes) {
      std::memcpy(reinterpret_cast<uint8_t*>(to.*array) + place * bytes,
                  reinterpret_cast<const uint8_t*>(from.*array) + place * bytes, count * bytes);
    };
    copy_rows(&KvHead::keys, row);
    copy_rows(&KvHead::values, row);
    if (session.kv_kind != PJ_I8) return;
    copy_rows(&KvHead::key_scales, sizeof(float));
    copy_rows(&KvHead::value_scales, sizeof(float));
  });
}

// One head's positions between its cache and a state, where they come in order: whole blocks of keys, values, scales
// of keys, of values. move(in the cache, in the state, bytes). Of blocks at the ends only what belongs to the positions
// is moved: the rest is somebody else's in the cache, and nobody's in the state.
template <class State, class Move>
State* carry(const Session& session, const KvHead& head, Range positions, State* state, Move move) {
  const size_t dim = static_cast<size_t>(session.model.head_dim), element = kv_element_bytes(session.kv_kind);
  const Range blocks = whole_blocks(positions);
  for (int first = blocks.begin; first < blocks.end; first += PJ_LANES, state += PJ_LANES * dim * element) {
    uint8_t* block = static_cast<uint8_t*>(head.keys) + static_cast<size_t>(place_of(head, first)) * dim * element;
    const Range ours = intersect({first, first + PJ_LANES}, positions);
    const size_t offset = static_cast<size_t>(ours.begin - first) * element;
    if (ours.size() == PJ_LANES) {
      move(block, state, PJ_LANES * dim * element);
    } else if (!ours.empty()) {
      for (size_t d = 0, at = offset; d < dim; ++d, at += PJ_LANES * element) {
        move(block + at, state + at, static_cast<size_t>(ours.size()) * element);
      }
    }
  }
  const auto carry_rows = [&](void* array, size_t bytes) {
    for_each_run(head, positions, [&](size_t place, size_t count) {
      move(static_cast<uint8_t*>(array) + place * bytes, state, count * bytes);
      state += count * bytes;
    });
  };
  carry_rows(head.values, dim * element);
  if (session.kv_kind == PJ_I8) {
    carry_rows(head.key_scales, sizeof(float));
    carry_rows(head.value_scales, sizeof(float));
  }
  return state;
}

size_t carried_bytes(const Session& session, Range positions) {
  const size_t scales = session.kv_kind == PJ_I8 ? 2 * sizeof(float) : 0;
  return static_cast<size_t>(whole_blocks(positions).size()) * row_bytes(session) +
         static_cast<size_t>(positions.size()) * (row_bytes(session) + scales);
}

bool can_hold(const Session& session, int length, int least) {
  return least >= 0 && least <= length && length <= session.max_context && least >= session.least_after(length);
}

// That a sequence can be cut to `length` tokens.
void check_cut(const Session& session, int sequence, int length, const char* verb) {
  const size_t s = static_cast<size_t>(check_sequence(session, sequence));
  const int held = session.lengths[s], least = session.least[s];
  if (length < 0 || length > held) fail(PJ_BAD_ARGUMENT, "cannot %s %d tokens of %d", verb, length, held);
  if (length > 0 && length < least) {
    fail(PJ_FORGOTTEN, "cannot %s %d tokens of %d: layers with a window forgot what fewer than %d need", verb, length,
         held, least);
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
  check_cut(session, sequence, length, "keep");
  session.lengths[static_cast<size_t>(sequence)] = length;
  if (length == 0) session.least[static_cast<size_t>(sequence)] = 0;
}

// A copy: it costs a hundredth of what computing the tokens cost, so blocks shared by sequences would not pay.
void fork(Session& session, int from, int to, int length) {
  check_cut(session, from, length, "fork");
  const size_t source = static_cast<size_t>(from), target = static_cast<size_t>(check_sequence(session, to));
  session.lengths[target] = length;
  session.least[target] = length ? session.least[source] : 0;
  session.adapters[target] = session.adapters[source];
  if (from == to) return;
  for (size_t i = 0; i < num_heads(session); ++i) {
    copy(session, session.cache(from)[i], session.cache(to)[i], kept(session, i, length, session.least[target]));
  }
}

void use_adapter(Session& session, int sequence, const Adapter* adapter) {
  const Adapter*& used = session.adapters[static_cast<size_t>(check_sequence(session, sequence))];
  if (adapter && &adapter->model != &session.model) fail(PJ_BAD_ARGUMENT, "the adapter was made for another model");
  if (used != adapter) truncate(session, sequence, 0);
  used = adapter;
}

size_t state_bytes(const Session& session, int length, int least) {
  if (!can_hold(session, length, least)) return 0;
  size_t total = 0;
  for (size_t i = 0; i < num_heads(session); ++i) total += carried_bytes(session, kept(session, i, length, least));
  return total;
}

void export_state(const Session& session, int sequence, uint8_t* state) {
  const size_t s = static_cast<size_t>(check_sequence(session, sequence));
  const int length = session.lengths[s], least = session.least[s];
  std::memset(state, 0, state_bytes(session, length, least));  // the same bytes whatever was forgotten
  for (size_t i = 0; i < num_heads(session); ++i) {
    state = carry(session, session.cache(sequence)[i], kept(session, i, length, least), state,
                  [](const void* in_cache, void* in_state, size_t bytes) { std::memcpy(in_state, in_cache, bytes); });
  }
}

void import_state(Session& session, int sequence, const uint8_t* state, int length, int least) {
  const size_t s = static_cast<size_t>(check_sequence(session, sequence));
  if (length < 0 || length > session.max_context) {
    fail(PJ_CONTEXT_FULL, "%d tokens do not fit a context of %d", length, session.max_context);
  }
  if (!can_hold(session, length, least)) {
    fail(PJ_BAD_ARGUMENT, "no state of %d tokens can be cut to %d", length, least);
  }
  for (size_t i = 0; i < num_heads(session); ++i) {
    state = carry(session, session.cache(sequence)[i], kept(session, i, length, least), state,
                  [](void* in_cache, const void* in_state, size_t bytes) { std::memcpy(in_cache, in_state, bytes); });
  }
  session.lengths[s] = length;
  session.least[s] = least;
}

}  // namespace penjing
