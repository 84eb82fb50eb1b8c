// Matrices of integer codes times 8-bit activations.
//
// Few columns: codes are unpacked in registers, for a run of columns at a time. Many columns: a pair of panels is unpacked
// to bytes, its scales to floats, in scratch, which stays in the nearest cache while tiles of columns pass by. Either way
// a row and column gets the same float operations in the same order.
namespace penjing {
namespace {

template <int FORM>
void unpack_panel(const Matrix& w, int panel, uint8_t* out) {
  Cursor<FORM> packed(w, panel, w.stride);
  for (int g = 0; g < w.num_groups; ++g, packed.end_group()) {
    for (int u = 0; u < w.stride / kUnit; ++u, out += 256) {
      Codes unit[4];
      packed.turn_to(u);
      packed.blocks(unit);
      for (int k = 0; k < 4; ++k) store_codes(out + 64 * k, unit[k]);
    }
  }
}

// Panels whose codes lie a byte each, `ld` bytes apart, and their scales [panel][group][16].
struct UnpackedPanels {
  const uint8_t* codes;
  size_t ld;
  const float* scales;
};

// Where an ISA multiplies squares (kColumnPairs): the sums of two columns, to its order of lanes or back.
template <int PANELS, int COLUMNS, class Change>
inline void each_pair(Ints (&total)[PANELS][COLUMNS], Change change) {
  for (int p = 0; p < PANELS; ++p) {
    for (int c = 0; c + 1 < COLUMNS; c += 2) change(total[p][c], total[p][c + 1]);
  }
}

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
    constexpr int kPaired = kColumnPairs ? COLUMNS / 2 * 2 : 0;
    if constexpr (kColumnPairs) {
#pragma GCC unroll 8
      for (int column = 0; column < kPaired; column += 2) {
        for (int p = 0; p < PANELS; ++p) {
          dot_squares(total[p][column], total[p][column + 1], c[p], x + column * ld_x + 4 * k, ld_x);
        }
      }
    }
#pragma GCC unroll 16
    for (int column = kPaired; column < COLUMNS; ++column) {
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; ++p) dot<WIDTH, kTileVectors, 1>(&total[p][column], c[p], x + column * ld_x + 4 * k);
    }
  }
}

// What stands between the units of a product, for the CPU to do at the same time: nothing.
struct Alone {
  void operator()() const {}
};

// The same of `num_units` times 16 inputs, whose codes lie `step` bytes apart.
template <int WIDTH, int PANELS, int COLUMNS, class Beside = Alone>
inline void dot_units(Ints (&total)[PANELS][COLUMNS], const uint8_t* codes, size_t ld_codes, size_t step, int num_units,
                      const int8_t* x, size_t ld_x, Beside&& beside = {}) {
  if constexpr (kColumnPairs) each_pair(total, [](auto& a, auto& b) { to_squares(a, b); });
  for (int u = 0; u < num_units; ++u, codes += step, x += kUnit) {
    beside();
    dot_tile<WIDTH>(total, codes, ld_codes, x, ld_x);
    for (auto& panel : total) {
      for (Ints& sum : panel) stay(sum);
    }
  }
  if constexpr (kColumnPairs) each_pair(total, [](auto& a, auto& b) { from_squares(a, b); });
}

// The same 16 inputs of one column.
template <int WIDTH, int PANELS, int COLUMNS>
inline void dot_column(Ints (&total)[PANELS][COLUMNS], int column, const Codes (&codes)[PANELS][4], const int8_t* x) {
#pragma GCC unroll 4
  for (int k = 0; k < 4; k += kTileVectors) {
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) dot<WIDTH, kTileVectors, 1>(&total[p][column], codes[p] + k, x + 4 * k);
  }
}

// WIDTH: how many bits dot must expect. UNITS: those of a group, 0 for any number. Where kEndByColumn says so, a group's
// last inputs meet one column after the other, so that the float steps of a column are done beside the products of the next;
// not in groups of two units, where the compiler mixes them as well.
template <int WIDTH, int PANELS, int COLUMNS, bool ZEROS, int UNITS>
void tile(const Matrix& w, int panel, UnpackedPanels unpacked, QuantizedColumns x, int column, float* y, size_t ld_y) {
  constexpr bool kByColumn = kEndByColumn && UNITS != 2;
  const size_t groups = static_cast<size_t>(w.num_groups), ld_x = groups * w.stride;
  const int num_units = UNITS ? UNITS : w.stride / kUnit;
  x = x.from(w, column);
  const uint8_t* weight = unpacked.codes;
  const int32_t shared = shared_correction<WIDTH>(w);
  float* const out = y + column * ld_y + static_cast<size_t>(panel) * kLanes;
  Floats acc[PANELS][COLUMNS];
  for (int p = 0; p < PANELS; ++p) {
    for (int c = 0; c < COLUMNS; ++c) {
      acc[p][c] = all(0.0f);
      __builtin_prefetch(out + c * ld_y + p * kLanes, 1);  // stores that miss would hold up the next tile
    }
  }
  for (int g = 0; g < w.num_groups; ++g, x.scale += x.ld, x.sum += x.ld) {
    Ints total[PANELS][COLUMNS];
    for (int p = 0; p < PANELS; ++p) {
      const Ints correction = correction_of<WIDTH, ZEROS>(w, (panel + p) * groups + g);
      for (int c = 0; c < COLUMNS; ++c) total[p][c] = first_sum<ZEROS>(correction, shared, x.sum[c]);
    }
    dot_units<WIDTH>(total, weight, unpacked.ld, kUnitBytes, kByColumn ? num_units - 1 : num_units, x.code, ld_x);
    weight += num_units * kUnitBytes;
    x.code += num_units * kUnit;
    Codes last[PANELS][4];
    for (int p = 0; kByColumn && p < PANELS; ++p) {
      for (int k = 0; k < 4; ++k) last[p][k] = load_codes(weight - kUnitBytes + p * unpacked.ld + 64 * k);
    }
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) {
      if constexpr (kByColumn) dot_column<WIDTH>(total, c, last, x.code - kUnit + c * ld_x);
      const Floats scale_x = all(x.scale[c]);
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; ++p) {
        const Floats both = mul(load(unpacked.scales + (p * groups + g) * kLanes), scale_x);
        acc[p][c] = fma(to_floats(total[p][c]), both, acc[p][c]);
      }
    }
  }
  for (int p = 0; p < PANELS; ++p) {
    const Floats bias = panel_bias(w, panel + p);
    for (int c = 0; c < COLUMNS; ++c) {
      store(out + c * ld_y + p * kLanes, w.bias ? add(acc[p][c], bias) : acc[p][c]);
    }
  }
}

template <int WIDTH, int PANELS, int COLUMNS, bool ZEROS, int UNITS>
void tile_columns(const Matrix& w, int panel, const UnpackedPanels& unpacked, const QuantizedColumns& x, int column,
                  int end, float* y, size_t ld_y) {
  for (; column + COLUMNS <= end; column += COLUMNS) {
    tile<WIDTH, PANELS, COLUMNS, ZEROS, UNITS>(w, panel, unpacked, x, column, y, ld_y);
  }
  if constexpr (COLUMNS > 1) {
    if (column < end) {
      tile_columns<WIDTH, PANELS, COLUMNS - 1, ZEROS, UNITS>(w, panel, unpacked, x, column, end, y, ld_y);
    }
  }
}

template <int FORM, int PANELS, bool ZEROS>
void tile_panels(const Matrix& w, int panel, const QuantizedColumns& x, int num_columns, float* y, size_t ld_y,
                 uint8_t* scratch) {
  const size_t groups = static_cast<size_t>(w.num_groups), ld = groups * w.stride * kLanes;
  float* scales = reinterpret_cast<float*>(scratch + PANELS * ld);
  UnpackedPanels unpacked = {scratch, ld, scales};
  if constexpr (FORM == 8) {
    unpacked = {w.data + panel * w.panel_bytes, w.panel_bytes, scales};
  } else {
    for (int p = 0; p < PANELS; ++p) unpack_panel<FORM>(w, panel + p, scratch + p * ld);
  }
  for (size_t i = 0; i < PANELS * groups; ++i) store(scales + i * kLanes, load_scales(w, panel * groups + i));
  constexpr int kWidth = dot_width(unpacked_bits(FORM));
  auto run = tile_columns<kWidth, PANELS, kTileColumns, ZEROS, 0>;
  if constexpr (kUnrollGroups && !ZEROS) {
    if (w.stride == 2 * kUnit) run = tile_columns<kWidth, PANELS, kTileColumns, ZEROS, 2>;
    if (w.stride == 4 * kUnit) run = tile_columns<kWidth, PANELS, kTileColumns, ZEROS, 4>;
  }
  run(w, panel, unpacked, x, 0, num_columns, y, ld_y);
}

template <int FORM, bool ZEROS>
void codes_panels(const Matrix& w, int begin, int end, const QuantizedColumns& x, int num_columns, float* y,
                  size_t ld_y, uint8_t* scratch) {
  if (num_columns <= kDirectRuns * kDirectColumns) {
    return direct<FORM, ZEROS>(w, begin, end, x, num_columns, y, ld_y);
  }
  for (; begin + kTilePanels <= end; begin += kTilePanels) {
    tile_panels<FORM, kTilePanels, ZEROS>(w, begin, x, num_columns, y, ld_y, scratch);
  }
  for (; begin < end; ++begin) tile_panels<FORM, 1, ZEROS>(w, begin, x, num_columns, y, ld_y, scratch);
}

using CodesPanels = void (*)(const Matrix& w, int begin, int end, const QuantizedColumns& x, int num_columns, float* y,
                             size_t ld_y, uint8_t* scratch);

template <bool ZEROS>
CodesPanels uniform_panels(int bits) {
  if constexpr (!ZEROS) {
    if (bits == 1) return codes_panels<1, false>;
  }
  switch (bits) {
    case 2:
      return codes_panels<2, ZEROS>;
    case 3:
      return codes_panels<3, ZEROS>;
    case 4:
      return codes_panels<4, ZEROS>;
    case 5:
      return codes_panels<5, ZEROS>;
    case 6:
      return codes_panels<6, ZEROS>;
    default:
      return codes_panels<8, ZEROS>;
  }
}

inline CodesPanels panels_for(const Matrix& w) {
  if (w.levels == PJ_TERNARY) return codes_panels<kTernary, false>;
  if (w.levels == PJ_BOOK) {
    if (w.bits == 2) return codes_panels<kBook + 2, false>;
    return w.bits == 3 ? codes_panels<kBook + 3, false> : codes_panels<kBook + 4, false>;
  }
  return w.zeros ? uniform_panels<true>(w.bits) : uniform_panels<false>(w.bits);
}

void linear_codes(const Matrix& w, int panel_begin, int panel_end, const QuantizedColumns& x, int num_columns, float* y,
                  size_t ld_y, void* scratch) {
  panels_for(w)(w, panel_begin, panel_end, x, num_columns, y, ld_y, static_cast<uint8_t*>(scratch));
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
