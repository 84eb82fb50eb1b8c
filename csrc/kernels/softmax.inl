// The softmax of a few queries, taken span by span (64 positions at fixed places), with a running maximum.
//
// Scores are in powers of two. The maximum follows only where a score is kSlack above it: most spans then neither wait for
// their own nor correct what is summed. Weights reach 2^kSlack, which float32 holds as well as 1.
//
// What a query does not see is an exact no-op: its score is -infinity, its weight 2^-infinity = 0, the maximum and so
// the correction stay. So the tile of queries, and which blocks the others in it see, cannot change a query's result.
namespace penjing {
namespace {

constexpr float kSlack = 24.0f;

// A span of positions, and which of them a tile of queries sees, counted from its first.
struct Span {
  int start, place;  // its first position, and where that lies
  int begin, end;    // of what any of them sees
  bool partial;      // for some of them

  int block() const { return begin / kLanes; }
  int block_end() const { return (end + kLanes - 1) / kLanes; }
};

// A few queries, what they see, and the state of their softmax.
template <int QUERIES>
struct QueryTile {
  const float* q;
  size_t ld_q;
  int first[QUERIES], last[QUERIES];  // positions seen
  int first_of_any, last_of_any, first_of_all, last_of_all;
  float maximum[QUERIES];
  Floats sum[QUERIES];
  float* acc;  // [query][ld_acc]: weighted sums of the values, not yet divided
  size_t ld_acc;
  Ints largest[QUERIES];  // of a span's weights where they become codes: of each lane, as `magnitude` has it

  void see(const int32_t* positions, int window) {
    for (int r = 0; r < QUERIES; ++r) {
      last[r] = positions[r];
      first[r] = window > 0 ? most(positions[r] - window + 1, 0) : 0;
      first_of_any = r ? least(first_of_any, first[r]) : first[r];
      last_of_any = r ? most(last_of_any, last[r]) : last[r];
      first_of_all = r ? most(first_of_all, first[r]) : first[r];
      last_of_all = r ? least(last_of_all, last[r]) : last[r];
    }
  }

  Span span_at(int start, int place) const {
    const bool partial = first_of_all > start || last_of_all < start + kSpan - 1;
    return {start, place, most(first_of_any - start, 0), least(last_of_any - start + 1, kSpan), partial};
  }
  Span first_span(const KvHead& cache) const {
    const int start = first_of_any / kSpan * kSpan;
    return span_at(start, place_of(cache, start));
  }
  Span span_after(const KvHead& cache, const Span& span) const {
    const int place = span.place + kSpan;  // where a ring ends it begins anew
    return span_at(span.start + kSpan, place == cache.capacity ? 0 : place);
  }
};

// Of one span and a tile of queries: scores, then softmax weights; of codes, weights times the scales of their values.
template <int QUERIES>
struct Weights {
  alignas(64) float of[QUERIES][kSpan];
  const float* value_scales[QUERIES];
  alignas(64) float seen_scales[QUERIES][kSpan];
};

// to = from at positions first to last of a span, `other` elsewhere, where nothing of `from` shows.
inline void copy_seen(int first, int last, const float* from, float other, float* to) {
  for (int i = 0; i < kSpan; i += kLanes) {
    const bool none = last < i || first >= i + kLanes;
    store(to + i, none ? all(other) : lanes_between(first - i, last - i, load(from + i), all(other)));
  }
}

template <pj_kind KIND, int QUERIES>
__attribute__((noinline)) void hide_unseen(const QueryTile<QUERIES>& tile, const Span& span, const float* value_scales,
                                           Weights<QUERIES>& scores) {
  for (int r = 0; r < QUERIES; ++r) {
    const int first = tile.first[r] - span.start, last = tile.last[r] - span.start;
    copy_seen(first, last, scores.of[r], -__builtin_inff(), scores.of[r]);
    if constexpr (KIND == PJ_I8) {
      copy_seen(first, last, value_scales, 0.0f, scores.seen_scales[r]);
      scores.value_scales[r] = scores.seen_scales[r];
    }
  }
}

template <int QUERIES>
inline bool is_above(const QueryTile<QUERIES>& tile, int r, Floats highest) {
  return any_above(highest, tile.maximum[r] + kSlack);
}

inline Floats highest_of(const float* scores) {
  Floats highest = load(scores);
  for (int i = kLanes; i < kSpan; i += kLanes) highest = at_least(highest, load(scores + i));
  return highest;
}

// pending (may be NULL): factors of what is still to be added to the weighted sums.
template <int QUERIES>
__attribute__((noinline)) void raise_maxima(QueryTile<QUERIES>& tile, const Weights<QUERIES>& scores, float* pending) {
  for (int r = 0; r < QUERIES; ++r) {
    const Floats highest = highest_of(scores.of[r]);
    if (!is_above(tile, r, highest)) continue;
    const float maximum = reduce_max(highest);
    const Floats correction = short_exp2<false>(all(tile.maximum[r] - maximum));
    tile.maximum[r] = maximum;
    tile.sum[r] = mul(tile.sum[r], correction);
    if (pending) pending[r] *= reduce_max(correction);
    float* acc = tile.acc + r * tile.ld_acc;
    for (size_t d = 0; d < tile.ld_acc; d += kLanes) store(acc + d, mul(load(acc + d), correction));
  }
}

// After this a span's scores can become weights. What is rare is apart, since registers are few beside dot products.
template <pj_kind KIND, int QUERIES>
inline void ready_scores(QueryTile<QUERIES>& tile, const KvHead& cache, const Span& span, Weights<QUERIES>& scores,
                         float* pending) {
  const float* value_scales = KIND == PJ_I8 ? cache.value_scales + span.place : nullptr;
  if (span.partial) {
    hide_unseen<KIND>(tile, span, value_scales, scores);
  } else if (KIND == PJ_I8) {
    for (int r = 0; r < QUERIES; ++r) scores.value_scales[r] = value_scales;
  }
  bool above = false;
  for (int r = 0; r < QUERIES; ++r) above |= is_above(tile, r, highest_of(scores.of[r]));
  if (above) raise_maxima(tile, scores, pending);
}

// Turns scores to weights, those of a query each time, and then nothing more.
template <pj_kind KIND, int QUERIES>
class Weighing {
 public:
  Weighing(QueryTile<QUERIES>& tile, Weights<QUERIES>& weights) : tile_(tile), weights_(weights) {}

  void operator()() {
    if (query_ < QUERIES) weigh(query_++);
  }
  void finish() {
    while (query_ < QUERIES) weigh(query_++);
  }

 private:
  void weigh(int r) {
    float* weights = weights_.of[r];
    const Floats maximum = all(tile_.maximum[r]);
    Floats sum = tile_.sum[r];
    Ints largest = ints(0);
#pragma GCC unroll 4
    for (int i = 0; i < kSpan; i += kLanes) {
      Floats weight = short_exp2<KIND != PJ_F32>(sub(load(weights + i), maximum));
      sum = add(sum, weight);
      if constexpr (KIND == PJ_I8) {
        weight = mul(weight, load(weights_.value_scales[r] + i));
        largest = max(largest, magnitude(weight));
      }
      store(weights + i, weight);
    }
    tile_.sum[r] = sum;
    tile_.largest[r] = largest;
  }

  QueryTile<QUERIES>& tile_;
  Weights<QUERIES>& weights_;
  int query_ = 0;
};

}  // namespace
}  // namespace penjing
