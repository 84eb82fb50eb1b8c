// Matrices of integer codes times 8-bit activations.
//
// Few columns: codes are unpacked in registers, every packed byte is read once. Many columns: a pair of panels is
// unpacked to bytes in scratch, which stays in the nearest cache while tiles of columns pass by. Either way a row
// and column gets the same float operations in the same order.
namespace penjing {
namespace {

constexpr int kChains = 4;  // independent integer sums, which hide the latency of dot when there is one column

template <int BITS>
constexpr size_t group_bytes(int stride) {
  return static_cast<size_t>(stride) * kLanes * BITS / 8;
}

// The 16 inputs of unit `unit` in a packed group, a byte a code.
template <int BITS>
inline void unpack(const uint8_t* group, int stride, int unit, Codes* c) {
  const size_t u = static_cast<size_t>(unit);
  if constexpr (BITS == 8) {
    for (int k = 0; k < 4; ++k) c[k] = load_codes(group + 256 * u + 64 * k);
  }
  if constexpr (BITS == 4 || BITS == 5 || BITS == 6) unpack4(group + 128 * u, c);
  if constexpr (BITS == 5) add_plane1<16>(group + group_bytes<4>(stride) + 32 * u, c);
  if constexpr (BITS == 6) add_plane2<16>(group + group_bytes<4>(stride) + 64 * u, c);
  if constexpr (BITS == 2 || BITS == 3) unpack2(group + 64 * u, c);
  if constexpr (BITS == 3) add_plane1<4>(group + group_bytes<2>(stride) + 32 * u, c);
}

// What one group of one panel multiplies into its sums.
struct GroupScales {
  Floats scale;
  Ints correction;  // times the sum of the activations: what dot left out, less the zero points
};

template <int BITS, bool ZEROS>
inline GroupScales group_scales(const Matrix& w, size_t group) {
  GroupScales out;
  out.scale = load_f16(w.scales + group * kLanes);
  if constexpr (ZEROS) {
    out.correction = sub(ints(code_offset(BITS)), load_u8(w.zeros + group * kLanes));
  } else {
    out.correction = ints(code_offset(BITS) - (1 << (w.bits - 1)));
  }
  return out;
}

inline Ints first_sum(const GroupScales& group, int32_t sum_x) { return mul(group.correction, ints(sum_x)); }

// --- few columns

template <int BITS, int COLUMNS, bool ZEROS>
void direct_panel(const Matrix& w, int panel, const QuantizedColumns& x, int column, float* y, size_t ld_y) {
  constexpr int kSums = COLUMNS == 1 ? kChains : COLUMNS == 2 ? 2 : 1;
  const size_t ld_x = static_cast<size_t>(w.num_groups) * w.stride;
  const uint8_t* packed = w.data + panel * w.panel_bytes;
  const int8_t* code = x.code + column * ld_x;
  const float* scale = x.scale + static_cast<size_t>(column) * w.num_groups;
  const int32_t* sum = x.sum + static_cast<size_t>(column) * w.num_groups;
  Floats acc[COLUMNS];
  for (int c = 0; c < COLUMNS; ++c) acc[c] = all(0.0f);

  for (int g = 0; g < w.num_groups; ++g, packed += group_bytes<BITS>(w.stride), code += w.stride) {
    const GroupScales group = group_scales<BITS, ZEROS>(w, static_cast<size_t>(panel) * w.num_groups + g);
    Ints total[COLUMNS][kSums];
    for (int c = 0; c < COLUMNS; ++c) {
      total[c][0] = first_sum(group, sum[static_cast<size_t>(c) * w.num_groups + g]);
      for (int k = 1; k < kSums; ++k) total[c][k] = ints(0);
    }
    for (int u = 0; u < w.stride / kUnit; ++u) {
      Codes unit[4];
      prefetch_ahead(packed + u * kUnit * kLanes * BITS / 8, kUnit * kLanes * BITS / 8);
      unpack<BITS>(packed, w.stride, u, unit);
      for (int c = 0; c < COLUMNS; ++c) dot<BITS, 4, kSums>(total[c], unit, code + c * ld_x + kUnit * u);
    }
    for (int c = 0; c < COLUMNS; ++c) {
      for (int k = 1; k < kSums; ++k) total[c][0] = add(total[c][0], total[c][k]);
      const Floats both = mul(group.scale, all(scale[static_cast<size_t>(c) * w.num_groups + g]));
      acc[c] = fma(to_floats(total[c][0]), both, acc[c]);
    }
  }
  const Floats bias = panel_bias(w, panel);
  for (int c = 0; c < COLUMNS; ++c) {
    store(y + (column + c) * ld_y + static_cast<size_t>(panel) * kLanes, w.bias ? add(acc[c], bias) : acc[c]);
  }
}

template <int BITS, int COLUMNS, bool ZEROS>
void direct_columns(const Matrix& w, int panel, const QuantizedColumns& x, int column, int end, float* y, size_t ld_y) {
  for (; column + COLUMNS <= end; column += COLUMNS) direct_panel<BITS, COLUMNS, ZEROS>(w, panel, x, column, y, ld_y);
  if constexpr (COLUMNS > 1) {
    if (column < end) direct_columns<BITS, COLUMNS / 2, ZEROS>(w, panel, x, column, end, y, ld_y);
  }
}

// --- many columns

template <int BITS>
void unpack_panel(const Matrix& w, int panel, uint8_t* out) {
  const uint8_t* packed = w.data + panel * w.panel_bytes;
  for (int g = 0; g < w.num_groups; ++g, packed += group_bytes<BITS>(w.stride)) {
    for (int u = 0; u < w.stride / kUnit; ++u, out += 256) {
      Codes unit[4];
      prefetch_ahead(packed + u * kUnit * kLanes * BITS / 8, kUnit * kLanes * BITS / 8);
      unpack<BITS>(packed, w.stride, u, unit);
      for (int k = 0; k < 4; ++k) store_codes(out + 64 * k, unit[k]);
    }
  }
}

// Panels whose codes lie a byte each, `ld` bytes apart.
struct BytePanels {
  const uint8_t* codes;
  size_t ld;
};

// 16 inputs of PANELS x COLUMNS. x: activations, columns ld_x apart.
template <int WIDTH, int PANELS, int COLUMNS>
inline void dot_tile(Ints (&total)[PANELS][COLUMNS], const uint8_t* codes, size_t ld_codes, const int8_t* x,
                     size_t ld_x) {
#pragma GCC unroll 4
  for (int k = 0; k < 4; k += kTileVectors) {
    Codes c[PANELS][kTileVectors];
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) c[p][v] = load_codes(codes + p * ld_codes + 64 * (k + v));
    }
#pragma GCC unroll 16
    for (int column = 0; column < COLUMNS; ++column) {
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; ++p) dot<WIDTH, kTileVectors, 1>(&total[p][column], c[p], x + column * ld_x + 4 * k);
    }
  }
}

// WIDTH: how many bits dot must expect.
template <int WIDTH, int PANELS, int COLUMNS, bool ZEROS>
void tile(const Matrix& w, int panel, BytePanels bytes, const QuantizedColumns& x, int column, float* y, size_t ld_y) {
  const size_t ld_x = static_cast<size_t>(w.num_groups) * w.stride;
  const int8_t* code = x.code + column * ld_x;
  const float* scale = x.scale + static_cast<size_t>(column) * w.num_groups;
  const int32_t* sum = x.sum + static_cast<size_t>(column) * w.num_groups;
  const uint8_t* weight = bytes.codes;
  Floats acc[PANELS][COLUMNS];
  for (int p = 0; p < PANELS; ++p) {
    for (int c = 0; c < COLUMNS; ++c) acc[p][c] = all(0.0f);
  }
  for (int g = 0; g < w.num_groups; ++g) {
    GroupScales group[PANELS];
    Ints total[PANELS][COLUMNS];
    for (int p = 0; p < PANELS; ++p) {
      group[p] = group_scales<WIDTH, ZEROS>(w, static_cast<size_t>(panel + p) * w.num_groups + g);
      for (int c = 0; c < COLUMNS; ++c) {
        total[p][c] = first_sum(group[p], sum[static_cast<size_t>(c) * w.num_groups + g]);
      }
    }
    for (int u = 0; u < w.stride / kUnit; ++u, weight += 256, code += kUnit) {
      dot_tile<WIDTH, PANELS, COLUMNS>(total, weight, bytes.ld, code, ld_x);
    }
    for (int c = 0; c < COLUMNS; ++c) {
      const Floats scale_x = all(scale[static_cast<size_t>(c) * w.num_groups + g]);
      for (int p = 0; p < PANELS; ++p) acc[p][c] = fma(to_floats(total[p][c]), mul(group[p].scale, scale_x), acc[p][c]);
    }
  }
  for (int p = 0; p < PANELS; ++p) {
    const Floats bias = panel_bias(w, panel + p);
    for (int c = 0; c < COLUMNS; ++c) {
      float* out = y + (column + c) * ld_y + static_cast<size_t>(panel + p) * kLanes;
      store(out, w.bias ? add(acc[p][c], bias) : acc[p][c]);
    }
  }
}

template <int WIDTH, int PANELS, int COLUMNS, bool ZEROS>
void tile_columns(const Matrix& w, int panel, BytePanels bytes, const QuantizedColumns& x, int column, int end,
                  float* y, size_t ld_y) {
  for (; column + COLUMNS <= end; column += COLUMNS) {
    tile<WIDTH, PANELS, COLUMNS, ZEROS>(w, panel, bytes, x, column, y, ld_y);
  }
  if constexpr (COLUMNS > 1) {
    if (column < end) tile_columns<WIDTH, PANELS, COLUMNS - 1, ZEROS>(w, panel, bytes, x, column, end, y, ld_y);
  }
}

template <int BITS, int PANELS, bool ZEROS>
void tile_panels(const Matrix& w, int panel, const QuantizedColumns& x, int num_columns, float* y, size_t ld_y,
                 uint8_t* scratch) {
  BytePanels bytes = {w.data + panel * w.panel_bytes, w.panel_bytes};
  if constexpr (BITS != 8) {
    bytes = {scratch, static_cast<size_t>(w.num_groups) * w.stride * kLanes};
    for (int p = 0; p < PANELS; ++p) unpack_panel<BITS>(w, panel + p, scratch + p * bytes.ld);
  }
  tile_columns<dot_width(BITS), PANELS, kTileColumns, ZEROS>(w, panel, bytes, x, 0, num_columns, y, ld_y);
}

// --- both

template <int BITS, bool ZEROS>
void codes_panels(const Matrix& w, int begin, int end, const QuantizedColumns& x, int num_columns, float* y,
                  size_t ld_y, uint8_t* scratch) {
  if (num_columns <= kDirectColumns) {
    for (; begin < end; ++begin) direct_columns<BITS, kDirectColumns, ZEROS>(w, begin, x, 0, num_columns, y, ld_y);
    return;
  }
  for (; begin + kTilePanels <= end; begin += kTilePanels) {
    tile_panels<BITS, kTilePanels, ZEROS>(w, begin, x, num_columns, y, ld_y, scratch);
  }
  for (; begin < end; ++begin) tile_panels<BITS, 1, ZEROS>(w, begin, x, num_columns, y, ld_y, scratch);
}

template <bool ZEROS>
void codes_any(const Matrix& w, int begin, int end, const QuantizedColumns& x, int num_columns, float* y, size_t ld_y,
               void* scratch) {
  uint8_t* bytes = static_cast<uint8_t*>(scratch);
  switch (w.bits) {
    case 2:
      return codes_panels<2, ZEROS>(w, begin, end, x, num_columns, y, ld_y, bytes);
    case 3:
      return codes_panels<3, ZEROS>(w, begin, end, x, num_columns, y, ld_y, bytes);
    case 4:
      return codes_panels<4, ZEROS>(w, begin, end, x, num_columns, y, ld_y, bytes);
    case 5:
      return codes_panels<5, ZEROS>(w, begin, end, x, num_columns, y, ld_y, bytes);
    case 6:
      return codes_panels<6, ZEROS>(w, begin, end, x, num_columns, y, ld_y, bytes);
    default:
      return codes_panels<8, ZEROS>(w, begin, end, x, num_columns, y, ld_y, bytes);
  }
}

void linear_codes(const Matrix& w, int panel_begin, int panel_end, const QuantizedColumns& x, int num_columns, float* y,
                  size_t ld_y, void* scratch) {
  if (w.zeros) return codes_any<true>(w, panel_begin, panel_end, x, num_columns, y, ld_y, scratch);
  codes_any<false>(w, panel_begin, panel_end, x, num_columns, y, ld_y, scratch);
}

// The tile's inner loop on data in the nearest cache.
uint64_t probe_int8(uint64_t steps, int32_t* sink) {
  constexpr int kUnits = 8;
  alignas(64) uint8_t codes[kTilePanels * kUnits * 256];
  alignas(64) int8_t x[kTileColumns * kUnits * kUnit];
  for (size_t i = 0; i < sizeof codes; ++i) codes[i] = static_cast<uint8_t>(i % 16);
  for (size_t i = 0; i < sizeof x; ++i) x[i] = static_cast<int8_t>(static_cast<int>(i % 255) - 127);
  Ints total[kTilePanels][kTileColumns];
  for (auto& panel : total) {
    for (Ints& sum : panel) sum = ints(0);
  }
  for (uint64_t step = 0; step < steps; ++step) {
    for (int u = 0; u < kUnits; ++u) {
      dot_tile<4>(total, codes + 256 * u, kUnits * 256, x + kUnit * u, kUnits * kUnit);
    }
  }
  int32_t checksum = 0;
  for (const auto& panel : total) {
    for (const Ints& sum : panel) checksum ^= reduce_add(sum);
  }
  *sink = checksum;
  return steps * kUnits * kUnit * kLanes * kTilePanels * kTileColumns;
}

}  // namespace
}  // namespace penjing
