// A matrix of codes times few columns: codes are unpacked in registers, for a run of columns at a time.
namespace penjing {
namespace {

constexpr int kChains = 4;  // independent integer sums, which hide the latency of dot when there is one column
constexpr int kAlone = 4;   // up to so many columns a panel goes alone

// Panels at once share the loads of activations, but are as many streams of memory, which does not pay for few columns.
constexpr int panels_at_once(int num_columns) { return num_columns > kAlone ? kDirectPanels : 1; }

// 16 inputs. Of one panel a column's dots follow each other; of two they use an activation for both as soon as it is there.
template <int WIDTH, int PANELS, int COLUMNS, int SUMS, int FORM>
inline void dot_unit(Ints (&total)[PANELS][COLUMNS][SUMS], const Cursor<FORM> (&packed)[PANELS], const int8_t* x,
                     size_t ld_x) {
  constexpr int kVectors = PANELS == 1 ? 4 : 1;
#pragma GCC unroll 4
  for (int k = 0; k < 4; k += kVectors) {
    Codes c[PANELS][kVectors];
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) c[p][v] = packed[p].block(k + v);
    }
#pragma GCC unroll 8
    for (int column = 0; column < COLUMNS; ++column) {
#pragma GCC unroll 2
      for (int p = 0; p < PANELS; ++p) dot<WIDTH, kVectors, SUMS>(total[p][column], c[p], x + column * ld_x + 4 * k);
    }
  }
}

template <int FORM, int PANELS, int COLUMNS, bool ZEROS>
void direct_panels(const Matrix& w, int panel, const QuantizedColumns& x, float* y, size_t ld_y) {
  constexpr int kSums = PANELS * COLUMNS < kChains ? kChains / (PANELS * COLUMNS) : 1;
  constexpr int kWidth = unpacked_bits(FORM);
  const size_t ld_x = static_cast<size_t>(w.num_groups) * w.stride;
  const int32_t shared = shared_correction<kWidth>(w);
  const int8_t* code = x.code;
  Cursor<FORM> packed[PANELS];
  Floats acc[PANELS][COLUMNS];
  for (int p = 0; p < PANELS; ++p) {
    packed[p] = Cursor<FORM>(w, panel + p, PANELS);
    for (int c = 0; c < COLUMNS; ++c) acc[p][c] = all(0.0f);
  }

  for (int g = 0; g < w.num_groups; ++g, code += w.stride) {
    Ints total[PANELS][COLUMNS][kSums];
    for (int p = 0; p < PANELS; ++p) {
      const Ints correction = correction_of<kWidth, ZEROS>(w, static_cast<size_t>(panel + p) * w.num_groups + g);
      for (int c = 0; c < COLUMNS; ++c) {
        total[p][c][0] = first_sum<ZEROS>(correction, shared, x.sum[static_cast<size_t>(c) * w.num_groups + g]);
        for (int k = 1; k < kSums; ++k) total[p][c][k] = ints(0);
      }
    }
    for (int u = 0; u < w.stride / kUnit; ++u) {
      for (int p = 0; p < PANELS; ++p) packed[p].turn_to(u);
      dot_unit<kWidth>(total, packed, code + kUnit * u, ld_x);
    }
    for (int p = 0; p < PANELS; ++p) {
      packed[p].end_group();
      const Floats scale_w = load_scales(w, static_cast<size_t>(panel + p) * w.num_groups + g);
      for (int c = 0; c < COLUMNS; ++c) {
        for (int k = 1; k < kSums; ++k) total[p][c][0] = add(total[p][c][0], total[p][c][k]);
        const Floats both = mul(scale_w, all(x.scale[static_cast<size_t>(c) * w.num_groups + g]));
        acc[p][c] = fma(to_floats(total[p][c][0]), both, acc[p][c]);
      }
    }
  }
  for (int p = 0; p < PANELS; ++p) {
    const Floats bias = panel_bias(w, panel + p);
    for (int c = 0; c < COLUMNS; ++c) {
      store(y + c * ld_y + static_cast<size_t>(panel + p) * kLanes, w.bias ? add(acc[p][c], bias) : acc[p][c]);
    }
  }
}

using DirectPanels = void (*)(const Matrix& w, int panel, const QuantizedColumns& x, float* y, size_t ld_y);

// Of a run of columns.
template <int FORM, int COLUMNS, bool ZEROS>
DirectPanels direct_panels_for(int num_columns, int panels) {
  if constexpr (COLUMNS > 1) {
    if (num_columns < COLUMNS) return direct_panels_for<FORM, COLUMNS - 1, ZEROS>(num_columns, panels);
  }
  if constexpr (COLUMNS <= kAlone) {
    if (panels == 1) return direct_panels<FORM, 1, COLUMNS, ZEROS>;
  }
  constexpr int kPanels = COLUMNS < kAlone ? 1 : kDirectPanels;
  return direct_panels<FORM, kPanels, COLUMNS, ZEROS>;
}

// Runs of columns, as even as can be, so that the codes that the first reads are near for the others.
template <int FORM, bool ZEROS>
void direct(const Matrix& w, int begin, int end, const QuantizedColumns& x, int num_columns, float* y, size_t ld_y) {
  const int num_runs = (num_columns + kDirectColumns - 1) / kDirectColumns;
  const int least_columns = num_columns / num_runs, num_larger = num_columns % num_runs;
  static_assert(kDirectColumns + 1 >= 2 * kAlone || kDirectPanels == 1,
                "several runs have at least kAlone columns each");
  const int panels = panels_at_once(num_columns);
  for (int panel = begin; panel < end; panel += panels) {
    const int first = least(panel, end - panels);  // the last of an odd number with its neighbour once more
    for (int run = 0, column = 0; run < num_runs; ++run) {
      const int columns = least_columns + (run < num_larger);
      const size_t groups = static_cast<size_t>(column) * w.num_groups;
      const QuantizedColumns part = {x.code + groups * w.stride, x.scale + groups, x.sum + groups};
      direct_panels_for<FORM, kDirectColumns, ZEROS>(columns, panels)(w, first, part, y + column * ld_y, ld_y);
      column += columns;
    }
  }
}

}  // namespace
}  // namespace penjing
