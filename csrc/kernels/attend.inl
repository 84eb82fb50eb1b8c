// Softmax attention over the cache: softmax.inl says how, attend_floats.inl and attend_codes.inl what is summed.
namespace penjing {
namespace {

inline int least(int a, int b) { return a < b ? a : b; }
inline int most(int a, int b) { return a > b ? a : b; }

template <pj_kind KIND, int QUERIES>
void attend_tile(const KvHead& cache, int head_dim, QueryTile<QUERIES>& tile, float* out, size_t ld_out) {
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
  const size_t row_bytes = kv_row_bytes(KIND, head_dim);
  int start = first / kSpan * kSpan, shift = start - place_of(cache, start);
  for (; start <= last; start += kSpan) {
    if (start - shift == cache.capacity) shift = start;  // a ring begins anew
    const int place = start - shift;
    const int begin = most(first - start, 0), end = least(last - start + 1, kSpan);
    const int block = begin / kLanes, block_end = (end + kLanes - 1) / kLanes;
    const size_t offset = static_cast<size_t>(place) * row_bytes;
    const uint8_t* values = static_cast<const uint8_t*>(cache.values) + offset;
    if constexpr (KIND == PJ_I8) {
      score_coded_span(tile, coded, cache, place, block, block_end);
    } else {
      score_span<KIND>(tile, head_dim, static_cast<const uint8_t*>(cache.keys) + offset, block, block_end);
    }
    for (int r = 0; r < QUERIES; ++r) weigh_span<KIND>(tile, cache, r, start, place, block, block_end);
    if constexpr (KIND == PJ_I8) {
      value_coded_span(tile, values, block, block_end);
    } else {
      value_span<KIND>(tile, head_dim, values, begin, end);
    }
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
