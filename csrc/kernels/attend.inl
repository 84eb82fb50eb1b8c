// Softmax attention over the cache: softmax.inl says how, attend_floats.inl and attend_codes.inl what is summed.
namespace penjing {
namespace {

// Four sizes of tile in one function were too much for GCC: float16 with three queries ran at two thirds of this speed.
template <pj_kind KIND, int QUERIES>
__attribute__((noinline)) void attend_tile(const KvHead& cache, int head_dim, QueryTile<QUERIES>& tile, float* out,
                                           size_t ld_out) {
  for (int r = 0; r < QUERIES; ++r) {
    tile.maximum[r] = -3.40282347e38f;  // the lowest number: -infinity less itself would be NaN
    tile.sum[r] = all(0.0f);
    for (size_t d = 0; d < tile.ld_acc; d += kLanes) store(tile.acc + r * tile.ld_acc + d, all(0.0f));
  }
  if constexpr (KIND == PJ_I8) {
    attend_coded_spans(cache, head_dim, tile);
  } else {
    attend_spans<KIND>(cache, head_dim, tile);
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
    tile.see(positions, window);
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
