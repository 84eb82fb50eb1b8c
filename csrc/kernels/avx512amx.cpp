// AMX: prompts and batches on tiles of 16 x 64 bytes (Sapphire Rapids and later). Everything else is AVX-512's.
//
// A block of the layout (16 rows x 4 inputs) is a row of a B tile as it lies, 16 columns of activations are the rows of
// an A tile, and a row of their product is a column's sums, a lane a row of the matrix: the vector that the other
// kernels hold. Codes are unpacked less their zero points as signed bytes, so that nothing has to be made good after.
//
// Shapes: a tile of activations is COLUMNS x chunk bytes, of weights chunk / 4 blocks x 64 bytes.
#include "kernels/avx512.inl"

#pragma GCC diagnostic ignored "-Wunused-function"  // of what comes with the lanes, only some is used here
// clang-format off: each stands on those above it
#include "kernels/maths.inl"
#include "kernels/vectors.inl"
#include "kernels/linear_float.inl"
#include "kernels/unpack.inl"
#include "kernels/linear_direct.inl"
#include "kernels/linear_codes.inl"
// clang-format on

namespace penjing {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64;
constexpr int kLeastColumns = 3;  // below, reading the weights is what takes time, and dot keeps up with that

// Tiles by number: sums of 16 columns 0 and of the last few 1, their activations 2 and 3, weights 4.
constexpr int kWeights = 4;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileConfig(int last_columns, int chunk) {
    set(0, kTileRows, kTileBytes);
    set(1, last_columns, kTileBytes);
    set(2, kTileRows, chunk);
    set(3, last_columns, chunk);
    set(kWeights, chunk / 4, kTileBytes);
  }

 private:
  void set(int tile, int num_rows, int num_bytes) {
    rows[tile] = static_cast<uint8_t>(num_rows);
    row_bytes[tile] = static_cast<uint16_t>(num_bytes);
  }
};

template <int COLUMNS>
struct alignas(64) TileSums {
  int32_t lane[COLUMNS][kLanes];
};

// The compiler does not know what memory tiles are loaded from.
inline void memory_fence() { asm volatile("" ::: "memory"); }

// The most inputs, a multiple of 4 and no more than a tile holds, that divide a group.
inline int chunk_of(int stride) {
  int blocks = kTileBytes / 4;
  while (stride / 4 % blocks) --blocks;
  return 4 * blocks;
}

// A panel's codes less their zero points, as signed bytes.
template <int FORM>
void unpack_panel_signed(const Matrix& w, int panel, uint8_t* out) {
  Cursor<FORM> packed(w, panel, w.stride);
  const uint8_t* zeros = w.zeros ? w.zeros + static_cast<size_t>(panel) * w.num_groups * kLanes : nullptr;
  __m512i zero = _mm512_set1_epi8(static_cast<char>(symmetric_zero(w)));
  for (int g = 0; g < w.num_groups; ++g, packed.end_group()) {
    if (zeros) zero = _mm512_mullo_epi32(load_u8(zeros + g * kLanes), _mm512_set1_epi32(0x01010101));
    for (int u = 0; u < w.stride / kUnit; ++u, out += 256) {
      Codes unit[4];
      packed.turn_to(u);
      packed.blocks(unit);
      for (int k = 0; k < 4; ++k) store_codes(out + 64 * k, _mm512_sub_epi8(unit[k], zero));
    }
  }
}

// Whether every code less its zero point is a signed byte.
inline bool fits_signed(const Matrix& w, int begin, int end) {
  if (!w.zeros) return true;
  const uint8_t* p = w.zeros + static_cast<size_t>(begin) * w.num_groups * kLanes;
  const size_t count = static_cast<size_t>(end - begin) * w.num_groups * kLanes;
  const int least = w.bits == 8 ? 128 : 0;
  bool fits = true;
  for (size_t i = 0; i < count; ++i) fits &= p[i] <= 128 && p[i] >= least;
  return fits;
}

// Instructions on tiles by number. Compilers' own intrinsics say of a store that it may change any memory, which keeps
// accumulators out of registers; these name what they change. Loads name nothing: see memory_fence.
template <int TILE>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
}
template <int TILE>
inline void tile_load(const void* rows, size_t ld) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(ld), "i"(TILE));
}
template <int SUMS, int COLUMNS, int WEIGHTS>
inline void tile_dot() {
  asm volatile("tdpbssd %%tmm%c0, %%tmm%c1, %%tmm%c2" : : "i"(WEIGHTS), "i"(COLUMNS), "i"(SUMS));
}
template <int TILE, int COLUMNS>
inline void tile_store(TileSums<COLUMNS>& out) {
  asm volatile("tilestored %%tmm%c3, (%1,%2,1)"
               : "=m"(out)
               : "r"(&out), "r"(static_cast<size_t>(kTileBytes)), "i"(TILE));
}

// The sums of one group.
template <int COLUMNS>
[[gnu::always_inline]] inline void tile_sums(const Matrix& w, const uint8_t* bytes, const int8_t* code, size_t ld_x,
                                             int chunk, TileSums<COLUMNS>& out) {
  constexpr bool kLast = COLUMNS < kTileRows;
  constexpr int kSums = kLast ? 1 : 0, kActivations = kLast ? 3 : 2;
  tile_zero<kSums>();
  for (int i = 0; i < w.stride; i += chunk) {
    tile_load<kActivations>(code + i, ld_x);
    tile_load<kWeights>(bytes + static_cast<size_t>(i) * kLanes, kTileBytes);
    tile_dot<kSums, kActivations, kWeights>();
  }
  tile_store<kSums>(out);
}

// A panel (unpacked) times COLUMNS columns. While the float steps of one group run, the tile unit is at the next.
template <int COLUMNS>
void tile_panel(const Matrix& w, int panel, const uint8_t* bytes, QuantizedColumns x, int chunk, float* y,
                size_t ld_y) {
  const size_t ld_x = static_cast<size_t>(w.num_groups) * w.stride;
  const size_t first_group = static_cast<size_t>(panel) * w.num_groups;
  TileSums<COLUMNS> sums[2];
  Floats acc[COLUMNS];
#pragma GCC unroll 16
  for (int c = 0; c < COLUMNS; ++c) acc[c] = all(0.0f);

  tile_sums(w, bytes, x.code, ld_x, chunk, sums[0]);
  for (int g = 0; g < w.num_groups; ++g, x.scale += x.ld) {
    bytes += w.stride * kLanes;
    x.code += w.stride;
    if (g + 1 < w.num_groups) tile_sums(w, bytes, x.code, ld_x, chunk, sums[~g & 1]);
    const Floats scale = load_scales(w, first_group + g);
#pragma GCC unroll 16
    for (int c = 0; c < COLUMNS; ++c) {
      acc[c] = fma(to_floats(_mm512_load_si512(sums[g & 1].lane[c])), mul(scale, all(x.scale[c])), acc[c]);
    }
  }
  const Floats bias = panel_bias(w, panel);
#pragma GCC unroll 16
  for (int c = 0; c < COLUMNS; ++c) {
    store(y + c * ld_y + static_cast<size_t>(panel) * kLanes, w.bias ? add(acc[c], bias) : acc[c]);
  }
}

template <int COLUMNS>
void tile_last(int count, const Matrix& w, int panel, const uint8_t* bytes, QuantizedColumns x, int chunk, float* y,
               size_t ld_y) {
  if (count == COLUMNS) return tile_panel<COLUMNS>(w, panel, bytes, x, chunk, y, ld_y);
  if constexpr (COLUMNS > 1) tile_last<COLUMNS - 1>(count, w, panel, bytes, x, chunk, y, ld_y);
}

template <int FORM>
void tile_panels_signed(const Matrix& w, int begin, int end, const QuantizedColumns& x, int num_columns, float* y,
                        size_t ld_y, uint8_t* scratch) {
  const int chunk = chunk_of(w.stride), last = num_columns % kTileRows;
  const TileConfig config(last ? last : 1, chunk);
  _tile_loadconfig(&config);
  for (int panel = begin; panel < end; ++panel) {
    unpack_panel_signed<FORM>(w, panel, scratch);
    memory_fence();
    for (int column = 0; column < num_columns; column += kTileRows) {
      const QuantizedColumns tile = x.from(w, column);
      const int rest = num_columns - column;
      float* out = y + column * ld_y;
      if (rest >= kTileRows) {
        tile_panel<kTileRows>(w, panel, scratch, tile, chunk, out, ld_y);
      } else {
        tile_last<kTileRows - 1>(rest, w, panel, scratch, tile, chunk, out, ld_y);
      }
    }
  }
  _tile_release();
}

using SignedPanels = void (*)(const Matrix& w, int begin, int end, const QuantizedColumns& x, int num_columns, float* y,
                              size_t ld_y, uint8_t* scratch);

inline SignedPanels signed_panels(const Matrix& w) {
  if (w.levels == PJ_TERNARY) return tile_panels_signed<kTernary>;
  if (w.levels == PJ_BOOK) {
    if (w.bits == 2) return tile_panels_signed<kBook + 2>;
    return w.bits == 3 ? tile_panels_signed<kBook + 3> : tile_panels_signed<kBook + 4>;
  }
  switch (w.bits) {
    case 1:
      return tile_panels_signed<1>;
    case 2:
      return tile_panels_signed<2>;
    case 3:
      return tile_panels_signed<3>;
    case 4:
      return tile_panels_signed<4>;
    case 5:
      return tile_panels_signed<5>;
    case 6:
      return tile_panels_signed<6>;
    default:
      return tile_panels_signed<8>;
  }
}

void linear_codes_amx(const Matrix& w, int begin, int end, const QuantizedColumns& x, int num_columns, float* y,
                      size_t ld_y, void* scratch) {
  if (num_columns < kLeastColumns || !fits_signed(w, begin, end)) {
    return kAvx512VnniKernels.linear_codes(w, begin, end, x, num_columns, y, ld_y, scratch);
  }
  signed_panels(w)(w, begin, end, x, num_columns, y, ld_y, static_cast<uint8_t*>(scratch));
}

// Products of tiles that stay.
uint64_t probe_int8_amx(uint64_t steps, int32_t* sink) {
  TileSums<kTileRows> sums = {};
  const TileConfig config(kTileRows, kTileBytes);
  _tile_loadconfig(&config);
  memory_fence();
  tile_load<2>(&sums, kTileBytes);
  tile_load<kWeights>(&sums, kTileBytes);
  for (uint64_t step = 0; step < steps; ++step) {
    tile_dot<0, 2, kWeights>();
    tile_dot<1, 2, kWeights>();
  }
  tile_store<0>(sums);
  _tile_release();
  *sink = sums.lane[0][0];
  return steps * 2 * kTileRows * kLanes * kTileBytes;
}

Kernels amx_table() {
  Kernels table = kAvx512VnniKernels;
  table.name = "avx512amx";
  table.linear_codes = linear_codes_amx;
  table.probe_int8 = probe_int8_amx;
  return table;
}

}  // namespace

const Kernels& avx512amx_kernels() {
  static const Kernels table = amx_table();
  return table;
}

}  // namespace penjing
