// Softmax attention over the cache: softmax.inl says how, attend_floats.inl and attend_codes.inl what is summed.
namespace penjing {
namespace {

inline Span span_at(int start, int place, int first, int last) {
  return {start, place, most(first - start, 0), least(last - start + 1, kSpan)};
}

// Four sizes of tile in one function were too much for GCC: float16 with three queries ran at two thirds of this speed.
template <pj_kind KIND, int QUERIES>
__attribute__((noinline)) void attend_tile(const KvHead& cache, int head_dim, QueryTile<QUERIES>& tile, float* out,
                                           size_t ld_out) {
  int first = tile.first[0], last = tile.last[0];
  for (int r = 0; r < QUERIES; ++r) {
    first = least(first, tile.first[r]);
    last = most(last, tile.last[r]);
    tile.maximum[r] = -3.40282347e38f;  // the lowest number: -infinity less itself would be NaN
    tile.sum[r] = all(0.0f);
    for (size_t d = 0; d < tile.ld_acc; d += kLanes) store(tile.acc + r * tile.ld_acc + d, all(0.0f));
  }
  CodedQueries<QUERIES> coded;
  if constexpr (KIND == PJ_I8) {
    coded.code = reinterpret_cast<int8_t*>(tile.acc + QUERIES * tile.ld_acc);
    coded.ld = tile.ld_acc;
    code_queries(tile, head_dim, coded);
  }
  const auto at = [&](void* array, const Span& span) {
    return static_cast<const uint8_t*>(array) + static_cast<size_t>(span.place) * kv_row_bytes(KIND, head_dim);
  };
  const auto score = [&](const Span& span, Weights<QUERIES>& scores) {
    if constexpr (KIND == PJ_I8) {
      score_coded_span(coded, cache, span, scores);
    } else {
      score_span<KIND>(tile, head_dim, at(cache.keys, span), span, scores);
    }
  };
  // Of codes the next span's scores come before this one's values, so that the CPU has something to do while it waits for
  // the weights, which are a long chain of steps. Of floats one query was a tenth slower so.
  constexpr bool kAhead = KIND == PJ_I8;
  Weights<QUERIES> both[kAhead ? 2 : 1];
  int turn = 0;
  Span span = span_at(first / kSpan * kSpan, place_of(cache, first / kSpan * kSpan), first, last);
  if constexpr (kAhead) score(span, both[0]);
  while (span.start <= last) {
    Weights<QUERIES>& weights = both[turn];
    if constexpr (!kAhead) score(span, weights);
    for (int r = 0; r < QUERIES; ++r) weigh_span<KIND>(tile, cache, span, r, weights.of[r]);
    const int place = span.place + kSpan;  // where a ring ends it begins anew
    const Span next = span_at(span.start + kSpan, place == cache.capacity ? 0 : place, first, last);
    if constexpr (kAhead) {
      CodedWeights<QUERIES> coded_weights;
      code_weights(tile, weights, coded_weights);
      turn = 1 - turn;
      if (next.start <= last) score(next, both[turn]);
      value_coded_span(tile, coded_weights, at(cache.values, span), span);
    } else {
      value_span<KIND>(tile, weights, head_dim, at(cache.values, span), span);
    }
    span = next;
  }
  for (int r = 0; r < QUERIES; ++r) {
    const Floats inverse = all(1.0f / reduce_add(tile.sum[r]));
    for (int d = 0; d < head_dim; d += kLanes) {  // fma with 0: a zero is +0 whatever was skipped
      const Floats mean = fma(load(tile.acc + r * tile.ld_acc + d), inverse, all(0.0f));
      store_up_to(out + r * ld_out + d, mean, head_dim - d);
    }
  }
}

template <pj_kind KIND, int QUERIES>
void attend_queries(const KvHead& cache, int head_dim, const float* q, size_t ld_q, const int32_t* positions,
                    int num_queries, int window, float* out, size_t ld_out, float* scratch) {
  for (; num_queries >= QUERIES; num_queries -= QUERIES) {
    QueryTile<QUERIES> tile;
    tile.q = q;
    tile.ld_q = ld_q;
    tile.acc = scratch;
    tile.ld_acc = static_cast<size_t>((head_dim + kLanes - 1) / kLanes) * kLanes;
    for (int r = 0; r < QUERIES; ++r) {
      tile.last[r] = positions[r];
      tile.first[r] = window > 0 ? most(positions[r] - window + 1, 0) : 0;
    }
    attend_tile<KIND>(cache, head_dim, tile, out, ld_out);
    q += QUERIES * ld_q;
    out += QUERIES * ld_out;
    positions += QUERIES;
  }
  if constexpr (QUERIES > 1) {
    if (num_queries) {
      attend_queries<KIND, QUERIES - 1>(cache, head_dim, q, ld_q, positions, num_queries, window, out, ld_out, scratch);
    }
  }
}

void attend(const KvHead& cache, int head_dim, const float* q, size_t ld_q, const int32_t* positions, int num_queries,
            int window, float* out, size_t ld_out, void* scratch) {
  const auto run = cache.kind == PJ_I8    ? attend_queries<PJ_I8, kQueryTile>
                   : cache.kind == PJ_F16 ? attend_queries<PJ_F16, kQueryTile>
                                          : attend_queries<PJ_F32, kQueryTile>;
  run(cache, head_dim, q, ld_q, positions, num_queries, window, out, ld_out, static_cast<float*>(scratch));
}

}  // namespace
}  // namespace penjing
