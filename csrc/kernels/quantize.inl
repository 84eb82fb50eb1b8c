// Activations to 8-bit codes, and rows of packed weights back to floats.
namespace penjing {
namespace {

// How a group of floats becomes codes. Infinity or NaN anywhere gives scale NaN, which reaches every output; below
// 2^-100 (whose 127 / amax would overflow) a group counts as zero.
struct Rounding {
  float scale;
  Floats inverse;
  bool finite;

  Ints code(Floats x) const {
    const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest even integer
    const Ints rounded = sub(bits_of(add(mul(x, inverse), magic)), ints(0x4b400000));
    return finite ? rounded : ints(0);
  }
};

// Orders floats without their sign: NaN > infinity > numbers.
inline Ints magnitude(Floats x) { return bit_and(bits_of(x), ints(0x7fffffff)); }

// amax_bits: the largest magnitude.
inline Rounding rounding_to(int32_t amax_bits) {
  float amax;
  std::memcpy(&amax, &amax_bits, sizeof amax);

  const bool finite = amax_bits < 0x7f800000;
  const bool zero = amax < 0x1p-100f;
  const float scale = !finite ? __builtin_nanf("") : zero ? 0.0f : amax / 127.0f;
  return {scale, all(finite && !zero ? 127.0f / amax : 0.0f), finite};
}

inline Rounding rounding_of(const float* x, int size) {
  Ints largest = ints(0);
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) largest = max(largest, magnitude(load(x + i)));
  if (i < size) largest = max(largest, magnitude(load_first(x + i, size - i)));
  return rounding_to(reduce_max(largest));
}

// 16 inputs at a time, the rest of the last unit coded 0. The sum of each lane's codes.
inline Ints quantize_lanes(const Rounding& rounding, const float* x, int size, int8_t* code) {
  Ints total = ints(0);
  for (int i = 0; i < size; i += kLanes) {
    const Ints lane_code = rounding.code(load_up_to(x + i, size - i));
    store_s8(code + i, lane_code);
    total = add(total, lane_code);
  }
  return total;
}

inline void quantize_group(const Rounding& rounding, const float* x, int size, int8_t* code, float* scale,
                           int32_t* sum) {
  *sum = reduce_add(quantize_lanes(rounding, x, size, code));
  *scale = rounding.scale;
}

void quantize_columns(const float* x, int num_columns, int cols, int group_size, const QuantizedColumns& out) {
  const int num_groups = cols / group_size;
  const int stride = (group_size + kUnit - 1) / kUnit * kUnit;
  for (int c = 0; c < num_columns; ++c) {
    for (int g = 0; g < num_groups; ++g) {
      const float* from = x + static_cast<size_t>(c) * cols + static_cast<size_t>(g) * group_size;
      int8_t* code = out.code + (static_cast<size_t>(c) * num_groups + g) * stride;
      const size_t at = static_cast<size_t>(g) * out.ld + c;
      quantize_group(rounding_of(from, group_size), from, group_size, code, out.scale + at, out.sum + at);
    }
  }
}

// Entry `entry` (4 * lane + input of its block) of block `block` in a plane.
inline int plane_entry(const uint8_t* plane, int plane_bits, int block, int entry) {
  switch (plane_bits) {
    case 8:
      return plane[block * 64 + entry];
    case 4:
      return plane[block / 2 * 64 + entry] >> (block % 2 * 4) & 15;
    case 2:
      return plane[block / 4 * 64 + entry] >> (block % 4 * 2) & 3;
    default:
      return plane[block * 8 + entry / 8] >> (entry % 8) & 1;
  }
}

// A group's planes: the low one, and above it one of `high` bits (0: none).
inline int low_bits(int bits) { return bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits; }

inline int bits_code(const Matrix& w, const uint8_t* panel, int group, int lane, int input) {
  const int low = low_bits(w.bits), high = w.bits - low, entry = 4 * lane + input % 4;
  const size_t size = static_cast<size_t>(w.stride) * kLanes;
  const uint8_t* plane = panel + group * (size * w.bits / 8);
  const int code = plane_entry(plane, low, input / 4, entry);
  return high ? code + (plane_entry(plane + size * low / 8, high, input / 4, entry) << low) : code;
}

inline int ternary_code(const Matrix& w, const uint8_t* panel, int group, int lane, int input) {
  const int block = (group * w.stride + input) / 4, unit = block / 4, fives = unit / kTernaryUnits;
  const int place = unit % kTernaryUnits, part = place < 4 ? place : block % 4;
  unsigned left = panel[256 * static_cast<size_t>(fives) + 64 * part + 4 * lane + input % 4];
  for (int digit = place < 4 ? 1 + block % 4 : 0; digit > 0; --digit) left = 3 * left & 255;
  return static_cast<int>(3 * left >> 8);
}

// What a code stands for, in units of the scale.
inline int level_at(const Matrix& w, const uint8_t* panel, int group, int lane, int input, int zero) {
  if (w.levels == PJ_TERNARY) return ternary_code(w, panel, group, lane, input) - 1;
  const int code = bits_code(w, panel, group, lane, input);
  if (w.levels == PJ_BOOK) return w.book[code];
  return w.bits == 1 ? 2 * code - 1 : code - zero;
}

void read_codes_row(const Matrix& w, int row, float* out) {
  const int panel = row / kLanes, lane = row % kLanes;
  const size_t first_group = static_cast<size_t>(panel) * w.num_groups;
  const uint8_t* data = w.data + panel * w.panel_bytes;
  for (int g = 0; g < w.num_groups; ++g) {
    const size_t entry = (first_group + g) * kLanes;
    float scale[kLanes];
    store(scale, load_scales(w, first_group + g));
    const int zero = w.zeros ? w.zeros[entry + lane] : symmetric_zero(w);
    for (int i = 0; i < w.group_size; ++i) {
      *out++ = static_cast<float>(level_at(w, data, g, lane, i, zero)) * scale[lane];
    }
  }
}

void read_row(const Matrix& w, int row, float* out) {
  if (w.kind == PJ_CODES) return read_codes_row(w, row, out);
  const size_t element = w.kind == PJ_F32 ? 4 : 2;
  const uint8_t* panel = w.data + row / kLanes * w.panel_bytes;
  float lanes[kLanes];
  for (int i = 0; i < w.cols; ++i) {
    const uint8_t* p = panel + static_cast<size_t>(i) * kLanes * element;
    store(lanes, w.kind == PJ_F32 ? load(p) : w.kind == PJ_F16 ? load_f16(p) : load_bf16(p));
    out[i] = lanes[row % kLanes];
  }
}

}  // namespace
}  // namespace penjing
