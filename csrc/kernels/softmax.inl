// The softmax of a few queries, taken span by span (64 positions at fixed places), with a running maximum.
//
// What a query does not see is an exact no-op: its score is -infinity, its weight exp(-infinity) = 0, the maximum and so
// the correction stay. So the tile of queries, and which blocks the others in it see, cannot change a query's result.
namespace penjing {
namespace {

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
  alignas(64) float weight[QUERIES][kSpan];  // of one span: scores, then softmax weights
};

// Scores to softmax weights for one query and blocks [block, end) of the span that starts at position `start`, which
// lies at `place`; of codes, weights times the scales of the values.
template <pj_kind KIND, int QUERIES>
inline void weigh_span(QueryTile<QUERIES>& tile, const KvHead& cache, int r, int start, int place, int block, int end) {
  const Floats unseen = all(-__builtin_inff());
  Floats largest = unseen;
  for (int b = block; b < end; ++b) {
    const int offset = start + b * kLanes;
    float* lanes = tile.weight[r] + b * kLanes;
    const Floats score = lanes_between(tile.first[r] - offset, tile.last[r] - offset, load(lanes), unseen);
    store(lanes, score);
    largest = at_least(largest, score);
  }
  const float span_maximum = reduce_max(largest);
  if (span_maximum > tile.maximum[r]) {
    const Floats correction = exp(all(tile.maximum[r] - span_maximum));
    tile.maximum[r] = span_maximum;
    tile.sum[r] = mul(tile.sum[r], correction);
    float* acc = tile.acc + r * tile.ld_acc;
    for (size_t d = 0; d < tile.ld_acc; d += kLanes) store(acc + d, mul(load(acc + d), correction));
  }
  for (int b = block; b < end; ++b) {
    float* lanes = tile.weight[r] + b * kLanes;
    const Floats weight = exp(sub(load(lanes), all(tile.maximum[r])));
    tile.sum[r] = add(tile.sum[r], weight);
    if constexpr (KIND == PJ_I8) {
      const int offset = start + b * kLanes;
      const Floats scaled = mul(weight, load(cache.value_scales + place + b * kLanes));
      store(lanes, lanes_between(tile.first[r] - offset, tile.last[r] - offset, scaled, all(0.0f)));
    } else {
      store(lanes, weight);
    }
  }
}

}  // namespace
}  // namespace penjing
