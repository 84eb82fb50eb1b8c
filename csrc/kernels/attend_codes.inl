// Scores and weighted sums over a cache of codes, by the dot product of matrices: sums of products of bytes.
//
// A query's head becomes codes with one scale, and so do its softmax weights of a span, each times the scale of its
// value. Sums are integers, so every instruction set and every tile gives the same bits here too.
//
// A CPU looks less far ahead than a span is long, so what can be done at the same time stands side by side: the steps of a
// span's softmax between the dot products of the span before, and the codes of weights, a long chain of steps, before the
// next scores.
namespace penjing {
namespace {

// Queries as codes, and what dot leaves out for the codes of the cache being entries + 128.
template <int QUERIES>
struct CodedQueries {
  int8_t* code;  // [query][ld]
  size_t ld;
  float scale[QUERIES];
  int32_t first_sum[QUERIES];
};

inline int32_t first_code_sum(int32_t sum_x) { return (code_offset(8) - 128) * sum_x; }

template <int QUERIES>
inline void code_queries(const QueryTile<QUERIES>& tile, int head_dim, CodedQueries<QUERIES>& out) {
  for (int r = 0; r < QUERIES; ++r) {
    int32_t sum;
    const float* q = tile.q + r * tile.ld_q;
    quantize_group(rounding_of(q, head_dim), q, head_dim, out.code + r * out.ld, &out.scale[r], &sum);
    out.scale[r] *= kLog2E;
    out.first_sum[r] = first_code_sum(sum);
  }
}

// Scores of BLOCKS blocks of 16 positions, from block `block` of the span at `place` on.
template <int QUERIES, int BLOCKS>
inline void score_coded_blocks(const CodedQueries<QUERIES>& coded, const KvHead& cache, int place, int block,
                               Weights<QUERIES>& scores) {
  const size_t block_bytes = coded.ld * kLanes;
  const uint8_t* keys = static_cast<const uint8_t*>(cache.keys) + (place / kLanes + block) * block_bytes;
  Ints total[BLOCKS][QUERIES];
  for (int r = 0; r < QUERIES; ++r) {
    for (int b = 0; b < BLOCKS; ++b) total[b][r] = ints(coded.first_sum[r]);
  }
  const int num_units = static_cast<int>(coded.ld) / kUnit;
  dot_units<dot_width(8)>(total, keys, block_bytes, kUnitBytes, num_units, coded.code, coded.ld);
  for (int b = 0; b < BLOCKS; ++b) {
    const Floats scale = load(cache.key_scales + place + (block + b) * kLanes);
    for (int r = 0; r < QUERIES; ++r) {
      const Floats both = mul(all(coded.scale[r]), scale);
      store(scores.of[r] + (block + b) * kLanes, mul(to_floats(total[b][r]), both));
    }
  }
}

template <int QUERIES>
inline void score_coded_span(const CodedQueries<QUERIES>& coded, const KvHead& cache, const Span& span,
                             Weights<QUERIES>& scores) {
  int block = span.block();
  const int end = span.block_end();
  for (; block + kScoreBlocks <= end; block += kScoreBlocks) {
    score_coded_blocks<QUERIES, kScoreBlocks>(coded, cache, span.place, block, scores);
  }
  for (; block < end; ++block) score_coded_blocks<QUERIES, 1>(coded, cache, span.place, block, scores);
}

// One span's weights as codes.
template <int QUERIES>
struct CodedWeights {
  alignas(64) int8_t code[QUERIES][kSpan];
  float scale[QUERIES];
  int32_t first_sum[QUERIES];
};

template <int QUERIES>
inline void code_weights(const QueryTile<QUERIES>& tile, const Weights<QUERIES>& weights, CodedWeights<QUERIES>& out) {
  int32_t largest[QUERIES], sum[QUERIES];
  reduce_max_each(tile.largest, largest);
  Ints sums[QUERIES];
  for (int r = 0; r < QUERIES; ++r) {
    const Rounding rounding = rounding_to(largest[r]);
    out.scale[r] = rounding.scale;
    sums[r] = quantize_lanes(rounding, weights.of[r], kSpan, out.code[r]);
  }
  reduce_add_each(sums, sum);
  for (int r = 0; r < QUERIES; ++r) out.first_sum[r] = first_code_sum(sum[r]);
}

// acc += weights * values for VECTORS vectors of 16 dimensions from d on; values: of the span.
template <int VECTORS, int QUERIES, class Beside>
inline void add_coded_values(QueryTile<QUERIES>& tile, const CodedWeights<QUERIES>& weights, const uint8_t* values,
                             const Span& span, int d, Beside& beside) {
  const size_t block_bytes = tile.ld_acc * kLanes;
  const int block = span.block(), num_blocks = span.block_end() - block;
  Ints total[VECTORS][QUERIES];
  for (int r = 0; r < QUERIES; ++r) {
    for (int v = 0; v < VECTORS; ++v) total[v][r] = ints(weights.first_sum[r]);
  }
  const uint8_t* units = values + block * block_bytes + static_cast<size_t>(d) * kLanes;
  dot_units<dot_width(8)>(total, units, kUnitBytes, block_bytes, num_blocks, weights.code[0] + block * kLanes, kSpan,
                          beside);
  for (int r = 0; r < QUERIES; ++r) {
    for (int v = 0; v < VECTORS; ++v) {
      float* acc = tile.acc + r * tile.ld_acc + d + v * kLanes;
      store(acc, fma(to_floats(total[v][r]), all(weights.scale[r]), load(acc)));
    }
  }
}

template <int QUERIES, class Beside>
inline void value_coded_span(QueryTile<QUERIES>& tile, const CodedWeights<QUERIES>& weights, const uint8_t* values,
                             const Span& span, Beside&& beside) {
  const int dims = static_cast<int>(tile.ld_acc);
  int d = 0;
  for (; d + kValueVectors * kLanes <= dims; d += kValueVectors * kLanes) {
    add_coded_values<kValueVectors>(tile, weights, values, span, d, beside);
  }
  for (; d < dims; d += kLanes) add_coded_values<1>(tile, weights, values, span, d, beside);
}

template <int QUERIES>
inline void attend_coded_spans(const KvHead& cache, int head_dim, QueryTile<QUERIES>& tile) {
  CodedQueries<QUERIES> queries;
  queries.code = reinterpret_cast<int8_t*>(tile.acc + QUERIES * tile.ld_acc);
  queries.ld = tile.ld_acc;
  code_queries(tile, head_dim, queries);
  const auto values_of = [&](const Span& span) {
    return static_cast<const uint8_t*>(cache.values) + static_cast<size_t>(span.place) * kv_row_bytes(PJ_I8, head_dim);
  };
  Weights<QUERIES> weights;
  CodedWeights<QUERIES> coded;
  Span span = tile.first_span(cache);
  score_coded_span(queries, cache, span, weights);
  ready_scores<PJ_I8>(tile, cache, span, weights, nullptr);
  Weighing<PJ_I8, QUERIES>(tile, weights).finish();
  code_weights(tile, weights, coded);
  for (Span next = tile.span_after(cache, span); next.start <= tile.last_of_any; next = tile.span_after(cache, span)) {
    score_coded_span(queries, cache, next, weights);
    ready_scores<PJ_I8>(tile, cache, next, weights, coded.scale);
    Weighing<PJ_I8, QUERIES> weighing(tile, weights);
    value_coded_span(tile, coded, values_of(span), span, weighing);
    weighing.finish();
    code_weights(tile, weights, coded);
    span = next;
  }
  value_coded_span(tile, coded, values_of(span), span, Alone());
}

}  // namespace
}  // namespace penjing
