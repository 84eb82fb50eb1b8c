// The cache of keys and values, and softmax attention over it.
//
// Keys lie 16 positions side by side, so a score needs no sum across lanes. The softmax is taken span by span
// (64 positions at fixed places), with a running maximum. What a query does not see is an exact no-op: its score is
// -infinity, its weight exp(-infinity) = 0, the maximum and so the correction stay. So the tile of queries, and
// which blocks the others in it see, cannot change a query's result.
namespace penjing {
namespace {

template <pj_kind KIND>
inline Floats load_cached(const uint8_t* p) {
  if constexpr (KIND == PJ_I8) return to_floats(load_s8(p));
  if constexpr (KIND == PJ_F16) return load_f16(p);
  return load(p);
}
template <pj_kind KIND>
inline Floats load_cached_first(const uint8_t* p, int n) {
  if constexpr (KIND == PJ_I8) {
    uint8_t lanes[kLanes] = {};
    std::memcpy(lanes, p, static_cast<size_t>(n));
    return load_cached<KIND>(lanes);
  }
  if constexpr (KIND == PJ_F16) return load_f16_first(p, n);
  return load_first(p, n);
}

// What turns floats into elements of the cache, for one head at one position.
struct ToF32 {
  using Element = float;
  void operator()(float* p, Floats x) const { store(p, x); }
};
struct ToF16 {
  using Element = uint16_t;
  void operator()(uint16_t* p, Floats x) const { store_f16(p, x); }
};
struct ToI8 {
  using Element = int8_t;
  Rounding rounding;
  void operator()(int8_t* p, Floats x) const { store_s8(p, rounding.code(x)); }
};

// A head's entries, `spread` elements apart in the cache: keys a block's 16 positions, values next to each other.
template <class To>
inline void store_head(const To& to, const float* x, int head_dim, typename To::Element* out, size_t spread) {
  for (int i = 0; i < head_dim; i += kLanes) {
    const int n = head_dim - i < kLanes ? head_dim - i : kLanes;
    typename To::Element lanes[kLanes];
    to(lanes, load_up_to(x + i, n));
    for (int j = 0; j < n; ++j) out[static_cast<size_t>(i + j) * spread] = lanes[j];
  }
}

template <class To>
inline void store_position(const To& to_key, const To& to_value, const KvHead& cache, int head_dim, int place,
                           const float* key, const float* value) {
  using Element = typename To::Element;
  const size_t first_key = static_cast<size_t>(place / kLanes) * head_dim * kLanes + place % kLanes;
  store_head(to_key, key, head_dim, static_cast<Element*>(cache.keys) + first_key, kLanes);
  store_head(to_value, value, head_dim, static_cast<Element*>(cache.values) + static_cast<size_t>(place) * head_dim, 1);
}

void store_kv(const KvHead& cache, int head_dim, int position, const float* key, const float* value) {
  const int place = place_of(cache, position);
  if (cache.kind == PJ_F32) return store_position(ToF32{}, ToF32{}, cache, head_dim, place, key, value);
  if (cache.kind == PJ_F16) return store_position(ToF16{}, ToF16{}, cache, head_dim, place, key, value);
  const ToI8 to_key = {rounding_of(key, head_dim)}, to_value = {rounding_of(value, head_dim)};
  store_position(to_key, to_value, cache, head_dim, place, key, value);
  cache.key_scales[place] = to_key.rounding.scale;
  cache.value_scales[place] = to_value.rounding.scale;
}

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

// Scores of BLOCKS blocks of 16 positions; keys: of the first of them, block: its place in the span.
template <pj_kind KIND, int QUERIES, int BLOCKS>
inline void score_blocks(QueryTile<QUERIES>& tile, int head_dim, const uint8_t* keys, int block) {
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
    for (int b = 0; b < BLOCKS; ++b) store(tile.weight[r] + (block + b) * kLanes, score[r][b]);
  }
}

template <pj_kind KIND, int QUERIES>
inline void score_span(QueryTile<QUERIES>& tile, int head_dim, const uint8_t* span_keys, int block, int end) {
  const size_t block_bytes = static_cast<size_t>(head_dim) * kLanes * kv_element_bytes(KIND);
  for (; block + kScoreBlocks <= end; block += kScoreBlocks) {
    score_blocks<KIND, QUERIES, kScoreBlocks>(tile, head_dim, span_keys + block * block_bytes, block);
  }
  for (; block < end; ++block) {
    score_blocks<KIND, QUERIES, 1>(tile, head_dim, span_keys + block * block_bytes, block);
  }
}

// Scores to softmax weights for one query and blocks [block, end) of the span that starts at position `start`, which
// lies at `place`.
template <pj_kind KIND, int QUERIES>
inline void weigh_span(QueryTile<QUERIES>& tile, const KvHead& cache, int r, int start, int place, int block, int end) {
  const Floats unseen = all(-__builtin_inff());
  Floats largest = unseen;
  for (int b = block; b < end; ++b) {
    const int offset = start + b * kLanes;
    float* lanes = tile.weight[r] + b * kLanes;
    Floats score = load(lanes);
    if constexpr (KIND == PJ_I8) score = mul(score, load(cache.key_scales + place + b * kLanes));
    score = lanes_between(tile.first[r] - offset, tile.last[r] - offset, score, unseen);
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
      store(lanes, mul(weight, load(cache.value_scales + place + b * kLanes)));
    } else {
      store(lanes, weight);
    }
  }
}

// acc[d..] += weight * value over positions [begin, end) of the span, for VECTORS vectors of 16 dimensions, the last
// of which may have only `last` of them.
template <pj_kind KIND, int QUERIES, int VECTORS, bool PARTIAL>
inline void add_values(QueryTile<QUERIES>& tile, int head_dim, const uint8_t* span_values, int begin, int end, int d) {
  constexpr size_t kElement = kv_element_bytes(KIND);
  Floats acc[QUERIES][VECTORS];
  for (int r = 0; r < QUERIES; ++r) {
    for (int v = 0; v < VECTORS; ++v) acc[r][v] = load(tile.acc + r * tile.ld_acc + d + v * kLanes);
  }
  for (int i = begin; i < end; ++i) {
    const uint8_t* row = span_values + (static_cast<size_t>(i) * head_dim + d) * kElement;
    Floats value[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
      const uint8_t* p = row + v * kLanes * kElement;
      value[v] = PARTIAL ? load_cached_first<KIND>(p, head_dim - d) : load_cached<KIND>(p);
    }
    for (int r = 0; r < QUERIES; ++r) {
      const Floats weight = all(tile.weight[r][i]);
      for (int v = 0; v < VECTORS; ++v) acc[r][v] = fma(weight, value[v], acc[r][v]);
    }
  }
  for (int r = 0; r < QUERIES; ++r) {
    for (int v = 0; v < VECTORS; ++v) store(tile.acc + r * tile.ld_acc + d + v * kLanes, acc[r][v]);
  }
}

template <pj_kind KIND, int QUERIES>
inline void value_span(QueryTile<QUERIES>& tile, int head_dim, const uint8_t* span_values, int begin, int end) {
  int d = 0;
  for (; d + kValueVectors * kLanes <= head_dim; d += kValueVectors * kLanes) {
    add_values<KIND, QUERIES, kValueVectors, false>(tile, head_dim, span_values, begin, end, d);
  }
  for (; d + kLanes <= head_dim; d += kLanes) {
    add_values<KIND, QUERIES, 1, false>(tile, head_dim, span_values, begin, end, d);
  }
  if (d < head_dim) add_values<KIND, QUERIES, 1, true>(tile, head_dim, span_values, begin, end, d);
}

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
  const size_t row_bytes = static_cast<size_t>(head_dim) * kv_element_bytes(KIND);
  int start = first / kSpan * kSpan, shift = start - place_of(cache, start);
  for (; start <= last; start += kSpan) {
    if (start - shift == cache.capacity) shift = start;  // a ring begins anew
    const int place = start - shift;
    const int begin = most(first - start, 0), end = least(last - start + 1, kSpan);
    const int block = begin / kLanes, block_end = (end + kLanes - 1) / kLanes;
    const size_t offset = static_cast<size_t>(place) * row_bytes;
    score_span<KIND>(tile, head_dim, static_cast<const uint8_t*>(cache.keys) + offset, block, block_end);
    for (int r = 0; r < QUERIES; ++r) weigh_span<KIND>(tile, cache, r, start, place, block, block_end);
    value_span<KIND>(tile, head_dim, static_cast<const uint8_t*>(cache.values) + offset, begin, end);
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
