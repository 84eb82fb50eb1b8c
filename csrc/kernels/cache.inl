// How keys and values are stored: one position of one head at a time.
//
// Floats: keys 16 positions side by side, so that a score needs no sum across lanes; values one position after the other.
// Codes: both as matrices lie (linear_codes.inl), units of 16 x 16 entries a byte each, entry + 128, since both are
// multiplied as those are: keys are rows over dimensions, values rows over positions. Dimensions are filled up with 0.
namespace penjing {
namespace {

struct ToF32 {
  using Element = float;
  void operator()(float* p, Floats x) const { store(p, x); }
};
struct ToF16 {
  using Element = uint16_t;
  void operator()(uint16_t* p, Floats x) const { store_f16(p, x); }
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
inline void store_position(const To& to, const KvHead& cache, int head_dim, int place, const float* key,
                           const float* value) {
  using Element = typename To::Element;
  const size_t first_key = static_cast<size_t>(place / kLanes) * head_dim * kLanes + place % kLanes;
  store_head(to, key, head_dim, static_cast<Element*>(cache.keys) + first_key, kLanes);
  store_head(to, value, head_dim, static_cast<Element*>(cache.values) + static_cast<size_t>(place) * head_dim, 1);
}

// A head as codes; entry d goes to out[16 dimensions' unit][d % 16 as `at` says]. Returns the scale.
template <class At>
inline float store_codes_of(const float* x, int head_dim, uint8_t* out, At at) {
  const Rounding rounding = rounding_of(x, head_dim);
  for (int i = 0; i < head_dim; i += kLanes, out += kUnitBytes) {
    int8_t lanes[kLanes];
    store_s8(lanes, rounding.code(load_up_to(x + i, head_dim - i)));
    for (int j = 0; j < kLanes; ++j) out[at(j)] = static_cast<uint8_t>(lanes[j] + 128);
  }
  return rounding.scale;
}

void store_kv(const KvHead& cache, int head_dim, int position, const float* key, const float* value) {
  const int place = place_of(cache, position), in_block = place % kLanes;
  if (cache.kind == PJ_F32) return store_position(ToF32{}, cache, head_dim, place, key, value);
  if (cache.kind == PJ_F16) return store_position(ToF16{}, cache, head_dim, place, key, value);
  const size_t block = static_cast<size_t>(place - in_block) * kv_row_bytes(PJ_I8, head_dim);
  cache.key_scales[place] = store_codes_of(key, head_dim, static_cast<uint8_t*>(cache.keys) + block,
                                           [=](int d) { return d / 4 * 64 + in_block * 4 + d % 4; });
  cache.value_scales[place] = store_codes_of(value, head_dim, static_cast<uint8_t*>(cache.values) + block,
                                             [=](int d) { return in_block / 4 * 64 + d * 4 + in_block % 4; });
}

}  // namespace
}  // namespace penjing
