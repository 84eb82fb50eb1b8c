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

size_t row_bytes(const Session& session) { return kv_row_bytes(session.kv_kind, session.model.head_dim); }

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

// Entries of a block of 16 positions: `count` runs, `spread` bytes apart, of `bytes` for each position.
struct BlockShape {
  size_t count, spread, bytes;
};

// One head's positions between its cache and a state, where they come in order: keys, values, scales of keys, of
// values. move(in the cache, in the state, bytes). What lies in blocks is whole blocks in the state; of those at the
// ends only what belongs to the positions is moved: the rest is somebody else's in the cache, and nobody's in the state.
template <class Move>
class Carrier {
 public:
  Carrier(const Session& session, const KvHead& head, Range positions, uint8_t* state, Move move)
      : head_(head), positions_(positions), row_(row_bytes(session)), state_(state), move_(move) {}

  uint8_t* run() {
    if (head_.kind != PJ_I8) {
      const size_t element = kv_element_bytes(head_.kind);
      blocks(head_.keys, {row_ / element, PJ_LANES * element, element});
      rows(head_.values, row_);
      return state_;
    }
    blocks(head_.keys, {row_ / 4, 64, 4});
    value_blocks();
    rows(head_.key_scales, sizeof(float));
    rows(head_.value_scales, sizeof(float));
    return state_;
  }

 private:
  const KvHead& head_;
  const Range positions_;
  const size_t row_;
  uint8_t* state_;
  const Move move_;

  // visit(block in the cache, which of its positions are ours): where these are not all of them.
  template <class Visit>
  void each_block(void* array, Visit visit) {
    const Range whole = whole_blocks(positions_);
    for (int first = whole.begin; first < whole.end; first += PJ_LANES, state_ += PJ_LANES * row_) {
      uint8_t* block = static_cast<uint8_t*>(array) + static_cast<size_t>(place_of(head_, first)) * row_;
      const Range ours = intersect({first, first + PJ_LANES}, positions_);
      if (ours.size() == PJ_LANES) {
        move_(block, state_, PJ_LANES * row_);
      } else if (!ours.empty()) {
        visit(block, Range{ours.begin - first, ours.end - first});
      }
    }
  }

  void blocks(void* array, BlockShape shape) {
    each_block(array, [&](uint8_t* block, Range ours) {
      size_t at = static_cast<size_t>(ours.begin) * shape.bytes;
      for (size_t i = 0; i < shape.count; ++i, at += shape.spread) {
        move_(block + at, state_ + at, static_cast<size_t>(ours.size()) * shape.bytes);
      }
    });
  }

  // Values as codes: 4 positions of one dimension lie side by side.
  void value_blocks() {
    each_block(head_.values, [&](uint8_t* block, Range ours) {
      for (int i = ours.begin; i < ours.end; ++i) {
        for (size_t d = 0; d < row_; ++d) {
          const size_t at = d / PJ_LANES * 256 + static_cast<size_t>(i / 4 * 64 + i % 4) + d % PJ_LANES * 4;
          move_(block + at, state_ + at, 1);
        }
      }
    });
  }

  void rows(void* array, size_t bytes) {
    for_each_run(head_, positions_, [&](size_t place, size_t count) {
      move_(static_cast<uint8_t*>(array) + place * bytes, state_, count * bytes);
      state_ += count * bytes;
    });
  }
};

size_t carried_bytes(const Session& session, Range positions) {
  const size_t row = row_bytes(session), in_blocks = static_cast<size_t>(whole_blocks(positions).size());
  const size_t count = static_cast<size_t>(positions.size());
  return session.kv_kind == PJ_I8 ? 2 * in_blocks * row + 2 * count * sizeof(float) : (in_blocks + count) * row;
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
    const auto out = [](const void* in_cache, void* in_state, size_t bytes) { std::memcpy(in_state, in_cache, bytes); };
    state = Carrier(session, session.cache(sequence)[i], kept(session, i, length, least), state, out).run();
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
  uint8_t* at = const_cast<uint8_t*>(state);  // only read: Carrier goes both ways
  for (size_t i = 0; i < num_heads(session); ++i) {
    const auto in = [](void* in_cache, const void* in_state, size_t bytes) { std::memcpy(in_cache, in_state, bytes); };
    const Range positions = kept(session, i, length, least);
    at = Carrier(session, session.cache(sequence)[i], positions, at, in).run();
  }
  session.lengths[s] = length;
  session.least[s] = least;
}

}  // namespace penjing
