// Scores and weighted sums over a cache of floats.
namespace penjing {
namespace {

template <pj_kind KIND>
inline Floats load_cached(const uint8_t* p) {
  if constexpr (KIND == PJ_F16) return load_f16(p);
  return load(p);
}
template <pj_kind KIND>
inline Floats load_cached_first(const uint8_t* p, int n) {
  if constexpr (KIND == PJ_F16) return load_f16_first(p, n);
  return load_first(p, n);
}

// Scores of BLOCKS blocks of 16 positions; keys: of the first of them, block: its place in the span.
template <pj_kind KIND, int QUERIES, int BLOCKS>
inline void score_blocks(const QueryTile<QUERIES>& tile, int head_dim, const uint8_t* keys, int block,
                         Weights<QUERIES>& scores) {
  constexpr size_t kRow = kLanes * kv_element_bytes(KIND);
  const size_t block_bytes = static_cast<size_t>(head_dim) * kRow;
  Floats score[QUERIES][BLOCKS];
  for (int r = 0; r < QUERIES; ++r) {
    for (int b = 0; b < BLOCKS; ++b) score[r][b] = all(0.0f);
  }
  for (int d = 0; d < head_dim; ++d) {
    Floats key[BLOCKS];
    for (int b = 0; b < BLOCKS; ++b) key[b] = load_cached<KIND>(keys + b * block_bytes + d * kRow);
    for (int r = 0; r < QUERIES; ++r) {
      const Floats q = all(tile.q[r * tile.ld_q + d]);
      for (int b = 0; b < BLOCKS; ++b) score[r][b] = fma(q, key[b], score[r][b]);
    }
  }
  for (int r = 0; r < QUERIES; ++r) {
    for (int b = 0; b < BLOCKS; ++b) store(scores.of[r] + (block + b) * kLanes, mul(score[r][b], all(kLog2E)));
  }
}

template <pj_kind KIND, int QUERIES>
inline void score_span(const QueryTile<QUERIES>& tile, int head_dim, const uint8_t* span_keys, const Span& span,
                       Weights<QUERIES>& scores) {
  int block = span.block();
  const int end = span.block_end();
  const size_t block_bytes = static_cast<size_t>(head_dim) * kLanes * kv_element_bytes(KIND);
  for (; block + kScoreBlocks <= end; block += kScoreBlocks) {
    score_blocks<KIND, QUERIES, kScoreBlocks>(tile, head_dim, span_keys + block * block_bytes, block, scores);
  }
  for (; block < end; ++block) {
    score_blocks<KIND, QUERIES, 1>(tile, head_dim, span_keys + block * block_bytes, block, scores);
  }
}

// acc[d..] += weight * value over the positions of the span that are seen, for VECTORS vectors of 16 dimensions, the last
// of which may have only `last` of them.
template <pj_kind KIND, int QUERIES, int VECTORS, bool PARTIAL>
inline void add_values(QueryTile<QUERIES>& tile, const Weights<QUERIES>& weights, int head_dim,
                       const uint8_t* span_values, const Span& span, int d) {
  constexpr size_t kElement = kv_element_bytes(KIND);
  Floats acc[QUERIES][VECTORS];
  for (int r = 0; r < QUERIES; ++r) {
    for (int v = 0; v < VECTORS; ++v) acc[r][v] = load(tile.acc + r * tile.ld_acc + d + v * kLanes);
  }
  for (int i = span.begin; i < span.end; ++i) {
    const uint8_t* row = span_values + (static_cast<size_t>(i) * head_dim + d) * kElement;
    Floats value[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
      const uint8_t* p = row + v * kLanes * kElement;
      value[v] = PARTIAL ? load_cached_first<KIND>(p, head_dim - d) : load_cached<KIND>(p);
    }
    for (int r = 0; r < QUERIES; ++r) {
      const Floats weight = all(weights.of[r][i]);
      for (int v = 0; v < VECTORS; ++v) acc[r][v] = fma(weight, value[v], acc[r][v]);
    }
  }
  for (int r = 0; r < QUERIES; ++r) {
    for (int v = 0; v < VECTORS; ++v) store(tile.acc + r * tile.ld_acc + d + v * kLanes, acc[r][v]);
  }
}

template <pj_kind KIND, int QUERIES>
inline void value_span(QueryTile<QUERIES>& tile, const Weights<QUERIES>& weights, int head_dim,
                       const uint8_t* span_values, const Span& span) {
  int d = 0;
  for (; d + kValueVectors * kLanes <= head_dim; d += kValueVectors * kLanes) {
    add_values<KIND, QUERIES, kValueVectors, false>(tile, weights, head_dim, span_values, span, d);
  }
  for (; d + kLanes <= head_dim; d += kLanes) {
    add_values<KIND, QUERIES, 1, false>(tile, weights, head_dim, span_values, span, d);
  }
  if (d < head_dim) add_values<KIND, QUERIES, 1, true>(tile, weights, head_dim, span_values, span, d);
}

template <pj_kind KIND, int QUERIES>
inline void attend_spans(const KvHead& cache, int head_dim, QueryTile<QUERIES>& tile) {
  const size_t row_bytes = kv_row_bytes(KIND, head_dim);
  Weights<QUERIES> weights;
  for (Span span = tile.first_span(cache); span.start <= tile.last_of_any; span = tile.span_after(cache, span)) {
    const size_t at = static_cast<size_t>(span.place) * row_bytes;
    score_span<KIND>(tile, head_dim, static_cast<const uint8_t*>(cache.keys) + at, span, weights);
    ready_scores<KIND>(tile, cache, span, weights, nullptr);
    Weighing<KIND, QUERIES>(tile, weights).finish();
    value_span<KIND>(tile, weights, head_dim, static_cast<const uint8_t*>(cache.values) + at, span);
  }
}

}  // namespace
}  // namespace penjing
