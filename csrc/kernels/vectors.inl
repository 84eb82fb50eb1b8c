// Kernels over one vector: norms, rotary embedding, activations, sums; and the memory probe.
namespace penjing {
namespace {

inline int least(int a, int b) { return a < b ? a : b; }
inline int most(int a, int b) { return a > b ? a : b; }

inline Floats load_up_to(const float* x, int n) { return n >= kLanes ? load(x) : load_first(x, n); }
inline void store_up_to(float* y, Floats x, int n) { n >= kLanes ? store(y, x) : store_first(y, x, n); }

// Of several vectors, for which an ISA may know a shorter way.
template <int N>
inline void reduce_max_each(const Ints (&a)[N], int32_t* out) {
  for (int i = 0; i < N; ++i) out[i] = reduce_max(a[i]);
}
template <int N>
inline void reduce_add_each(const Ints (&a)[N], int32_t* out) {
  for (int i = 0; i < N; ++i) out[i] = reduce_add(a[i]);
}

// Scales of 8 bits, layout in penjing.h: moved to where a float32 has its exponent and its mantissa, they are 2^-112 of
// what they stand for.
inline Floats load_small_scales(const uint8_t* p) {
  const Ints byte = load_u8(p);
  const Ints sign = shift_left<24>(bit_and(byte, ints(0x80)));
  const Ints rest = shift_left<20>(bit_and(byte, ints(0x7f)));
  return mul(floats_of_bits(add(sign, rest)), all(0x1p112f));
}

// The scales of one group of a panel; `group`: counted through all panels.
inline Floats load_scales(const Matrix& w, size_t group) {
  if (w.scale_bytes == 1) return load_small_scales(w.scales + group * kLanes);
  return load_f16(w.scales + 2 * group * kLanes);
}

void rms_norm(const float* x, const float* weight, int size, float eps, float* y) {
  Floats squares = all(0.0f);
  for (int i = 0; i < size; i += kLanes) {
    const Floats lane = load_up_to(x + i, size - i);
    squares = fma(lane, lane, squares);
  }
  const float mean = reduce_add(squares) / static_cast<float>(size);
  const Floats inverse = all(1.0f / __builtin_sqrtf(mean + eps));
  for (int i = 0; i < size; i += kLanes) {
    const Floats scaled = mul(load_up_to(x + i, size - i), inverse);
    store_up_to(y + i, mul(scaled, load_up_to(weight + i, size - i)), size - i);
  }
}

void layer_norm(const float* x, const float* weight, const float* bias, int size, float eps, float* y) {
  Floats sum = all(0.0f);
  for (int i = 0; i < size; i += kLanes) sum = add(sum, load_up_to(x + i, size - i));
  const Floats mean = all(reduce_add(sum) / static_cast<float>(size));
  Floats squares = all(0.0f);
  for (int i = 0; i < size; i += kLanes) {
    const Floats off = lanes_between(0, size - i - 1, sub(load_up_to(x + i, size - i), mean), all(0.0f));
    squares = fma(off, off, squares);
  }
  const Floats inverse = all(1.0f / __builtin_sqrtf(reduce_add(squares) / static_cast<float>(size) + eps));
  for (int i = 0; i < size; i += kLanes) {
    const Floats scaled = mul(sub(load_up_to(x + i, size - i), mean), inverse);
    const Floats shift = bias ? load_up_to(bias + i, size - i) : all(0.0f);
    store_up_to(y + i, fma(scaled, load_up_to(weight + i, size - i), shift), size - i);
  }
}

void rope(float* head, const float* cos, const float* sin, int rotary_dim) {
  const int half = rotary_dim / 2;
  for (int i = 0; i < half; i += kLanes) {
    const int n = half - i;
    const Floats a = load_up_to(head + i, n), b = load_up_to(head + half + i, n);
    const Floats c = load_up_to(cos + i, n), s = load_up_to(sin + i, n);
    store_up_to(head + i, fma(negate(b), s, mul(a, c)), n);
    store_up_to(head + half + i, fma(a, s, mul(b, c)), n);
  }
}

inline Floats gelu_tanh(Floats x) {  // (1 + tanh(z)) / 2 = sigmoid(2z), z = sqrt(2 / pi) (x + 0.044715 x^3)
  const Floats cubic = fma(mul(mul(x, x), x), all(0.044715f), x);
  return mul(x, sigmoid(mul(all(1.59576912f), cubic)));
}

void activate(pj_activation act, const float* gate, const float* up, int size, float* y) {
  for (int i = 0; i < size; i += kLanes) {
    const int n = size - i;
    const Floats x = load_up_to(gate + i, n);
    Floats value = act == PJ_SILU ? mul(x, sigmoid(x)) : act == PJ_GELU ? mul(x, normal_cdf(x)) : gelu_tanh(x);
    if (up) value = mul(value, load_up_to(up + i, n));
    store_up_to(y + i, value, n);
  }
}

void add_scaled(const float* x, float scale, int size, float* y) {
  for (int i = 0; i < size; i += kLanes) {
    const int n = size - i;
    store_up_to(y + i, fma(all(scale), load_up_to(x + i, n), load_up_to(y + i, n)), n);
  }
}

// Ask for the lines that lie kPrefetchBytes after these. The planes of a group are streams that take turns, which the
// hardware's prefetcher loses: 5 and 6 bits are read 1.7 and 4 times as fast with this, plain streams a fifth faster.
constexpr int kPrefetchBytes = 8192;

inline void prefetch_ahead(const uint8_t* p, int size) {
  const uintptr_t ahead = reinterpret_cast<uintptr_t>(p) + kPrefetchBytes;  // may lie past the end: only a hint
  for (int i = 0; i < size; i += 64) __builtin_prefetch(reinterpret_cast<const void*>(ahead + i));
}

// Sum of the buffer's 4-byte words; bytes past the last whole 256 are left out.
uint64_t probe_read(const uint8_t* buffer, size_t size) {
  Ints sum[4] = {ints(0), ints(0), ints(0), ints(0)};
  for (size_t i = 0; i + 256 <= size; i += 256) {
    prefetch_ahead(buffer + i, 256);
    for (int k = 0; k < 4; ++k) sum[k] = add(sum[k], bits_of(load(buffer + i + 64 * k)));
  }
  return static_cast<uint32_t>(reduce_add(add(add(sum[0], sum[1]), add(sum[2], sum[3]))));
}

}  // namespace
}  // namespace penjing
