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
  int32_t largest[QUERIES];                  // of those weights where they become codes, as `magnitude` has it
};

// Scores to softmax weights for one query and blocks [block, end) of the span that starts at position `start`, which
// lies at `place`; of codes, weights times the scales of the values. What it reads of the tile it reads once: to the
// compiler every store might change it.
template <pj_kind KIND, int QUERIES>
inline void weigh_span(QueryTile<QUERIES>& tile, const KvHead& cache, int r, int start, int place, int block, int end) {
  const int first = tile.first[r] - start, last = tile.last[r] - start;
  float* const lanes = tile.weight[r];
  const Floats unseen = all(-__builtin_inff());
  Floats largest = unseen;
  for (int b = block; b < end; ++b) {
    const Floats score = lanes_between(first - b * kLanes, last - b * kLanes, load(lanes + b * kLanes), unseen);
    store(lanes + b * kLanes, score);
    largest = at_least(largest, score);
  }
  Floats sum = tile.sum[r];
  float maximum = tile.maximum[r];
  const float span_maximum = reduce_max(largest);
  if (span_maximum > maximum) {
    const Floats correction = exp_of_negative(all(maximum - span_maximum));
    tile.maximum[r] = maximum = span_maximum;
    sum = mul(sum, correction);
    float* acc = tile.acc + r * tile.ld_acc;
    for (size_t d = 0; d < tile.ld_acc; d += kLanes) store(acc + d, mul(load(acc + d), correction));
  }
  const float* const value_scales = KIND == PJ_I8 ? cache.value_scales + place : nullptr;
  Ints largest_weight = ints(0);
  for (int b = block; b < end; ++b) {
    Floats weight = exp_of_negative(sub(load(lanes + b * kLanes), all(maximum)));
    sum = add(sum, weight);
    if constexpr (KIND == PJ_I8) {
      weight = mul(weight, load(value_scales + b * kLanes));
      weight = lanes_between(first - b * kLanes, last - b * kLanes, weight, all(0.0f));
      largest_weight = max(largest_weight, magnitude(weight));
    }
    store(lanes + b * kLanes, weight);
  }
  tile.sum[r] = sum;
  if constexpr (KIND == PJ_I8) tile.largest[r] = reduce_max(largest_weight);
}

}  // namespace
}  // namespace penjing
