// The softmax of a few queries, taken span by span (64 positions at fixed places), with a running maximum.
//
// The maximum follows only where a score is kSlack above it: most spans then neither wait for their own nor correct what
// is summed. Weights reach e^kSlack, which float32 holds as well as 1.
//
// What a query does not see is an exact no-op: its score is -infinity, its weight exp(-infinity) = 0, the maximum and so
// the correction stay. So the tile of queries, and which blocks the others in it see, cannot change a query's result.
namespace penjing {
namespace {

constexpr int kBlocks = kSpan / kLanes;
constexpr float kSlack = 16.0f;

// A span of positions, and which of them a tile of queries sees, counted from its first.
struct Span {
  int start, place;  // its first position, and where that lies
  int begin, end;

  int block() const { return begin / kLanes; }
  int block_end() const { return (end + kLanes - 1) / kLanes; }
};

// A few queries, what they see, and the state of their softmax.
template <int QUERIES>
struct QueryTile {
  const float* q;
  size_t ld_q;
  int first[QUERIES], last[QUERIES];  // positions seen
  float maximum[QUERIES];
  Floats sum[QUERIES];
  float* acc;  // [query][ld_acc]: weighted sums of the values, not yet divided
  size_t ld_acc;
  Ints largest[QUERIES];  // of a span's weights where they become codes: of each lane, as `magnitude` has it
};

// Of one span and a tile of queries: scores, then softmax weights.
template <int QUERIES>
struct Weights {
  alignas(64) float of[QUERIES][kSpan];
};

template <int QUERIES>
inline void raise_maximum(QueryTile<QUERIES>& tile, int r, float maximum) {
  const Floats correction = short_exp(all(tile.maximum[r] - maximum));
  tile.maximum[r] = maximum;
  tile.sum[r] = mul(tile.sum[r], correction);
  float* acc = tile.acc + r * tile.ld_acc;
  for (size_t d = 0; d < tile.ld_acc; d += kLanes) store(acc + d, mul(load(acc + d), correction));
}

// to = from at positions first to last of a span, `other` elsewhere, where nothing of `from` shows.
inline void copy_seen(int first, int last, const float* from, float other, float* to) {
  for (int i = 0; i < kSpan; i += kLanes) {
    const bool none = last < i || first >= i + kLanes;
    store(to + i, none ? all(other) : lanes_between(first - i, last - i, load(from + i), all(other)));
  }
}

// Scores to softmax weights for one query; of codes, weights times the scales of the values. Whole spans and others go
// one way, so what is not seen is hidden before.
template <pj_kind KIND, int QUERIES>
inline void weigh_span(QueryTile<QUERIES>& tile, const KvHead& cache, const Span& span, int r, float* weights) {
  const int first = tile.first[r] - span.start, last = tile.last[r] - span.start;
  const float* value_scales = KIND == PJ_I8 ? cache.value_scales + span.place : nullptr;
  alignas(64) float seen_scales[kSpan];
  if (first > 0 || last < kSpan - 1) {
    copy_seen(first, last, weights, -__builtin_inff(), weights);
    if constexpr (KIND == PJ_I8) {
      copy_seen(first, last, value_scales, 0.0f, seen_scales);
      value_scales = seen_scales;
    }
  }
  Floats lane[kBlocks], highest = all(-__builtin_inff());
  for (int b = 0; b < kBlocks; ++b) {
    lane[b] = load(weights + b * kLanes);
    highest = at_least(highest, lane[b]);
  }
  if (any_above(highest, tile.maximum[r] + kSlack)) raise_maximum(tile, r, reduce_max(highest));
  const Floats maximum = all(tile.maximum[r]);
  Floats sum = tile.sum[r];
  Ints largest = ints(0);
  for (int b = 0; b < kBlocks; ++b) {
    Floats weight = short_exp(sub(lane[b], maximum));
    sum = add(sum, weight);
    if constexpr (KIND == PJ_I8) {
      weight = mul(weight, load(value_scales + b * kLanes));
      largest = max(largest, magnitude(weight));
    }
    store(weights + b * kLanes, weight);
  }
  tile.sum[r] = sum;
  tile.largest[r] = largest;
}

}  // namespace
}  // namespace penjing
