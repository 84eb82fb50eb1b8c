// A matrix of codes times few columns: codes are unpacked in registers, for a run of columns at a time.
namespace penjing {
namespace {

constexpr int kChains = 4;  // independent integer sums, which hide the latency of dot when there is one column

// 16 inputs of a panel. Of few columns each has its dots one after the other. Of many a block meets all columns as soon as
// it is unpacked, so that few blocks are in registers: the compiler leaves out the three that are not used.
template <int WIDTH, int COLUMNS, int SUMS, int FORM>
inline void dot_unit(Ints (&total)[COLUMNS][SUMS], const Cursor<FORM>& packed, const int8_t* x, size_t ld_x) {
  Codes c[4];
  if constexpr (COLUMNS <= kChains) {
    packed.blocks(c);
    for (int column = 0; column < COLUMNS; ++column) dot<WIDTH, 4, SUMS>(total[column], c, x + column * ld_x);
  } else {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      packed.blocks(c);
#pragma GCC unroll 8
      for (int column = 0; column < COLUMNS; ++column) {
        dot<WIDTH, 1, SUMS>(total[column], c + k, x + column * ld_x + 4 * k);
      }
    }
  }
}

// UNITS: those of a group, 0 for any number.
template <int FORM, int COLUMNS, bool ZEROS, int UNITS>
void direct_panel(const Matrix& w, int panel, const QuantizedColumns& x, float* y, size_t ld_y) {
  constexpr int kSums = COLUMNS < kChains ? kChains / COLUMNS : 1;
  constexpr int kWidth = unpacked_bits(FORM);
  const size_t ld_x = static_cast<size_t>(w.num_groups) * w.stride;
  const int32_t shared = shared_correction<kWidth>(w);
  const int8_t* code = x.code;
  const int num_units = UNITS ? UNITS : w.stride / kUnit, stride = num_units * kUnit;
  Cursor<FORM> packed(w, panel, stride);
  Floats acc[COLUMNS];
  for (int c = 0; c < COLUMNS; ++c) acc[c] = all(0.0f);

  for (int g = 0; g < w.num_groups; ++g, packed.end_group(), code += stride) {
    const size_t group = static_cast<size_t>(panel) * w.num_groups + g;
    const Floats scale_w = load_scales(w, group);
    const Ints correction = correction_of<kWidth, ZEROS>(w, group);
    Ints total[COLUMNS][kSums];
    for (int c = 0; c < COLUMNS; ++c) {
      total[c][0] = first_sum<ZEROS>(correction, shared, x.sum[static_cast<size_t>(g) * x.ld + c]);
      for (int k = 1; k < kSums; ++k) total[c][k] = ints(0);
    }
    const auto add_unit = [&](int u) {
      packed.turn_to(u);
      dot_unit<kWidth>(total, packed, code + kUnit * u, ld_x);
    };
    if constexpr (UNITS > 0) {
#pragma GCC unroll 4
      for (int u = 0; u < UNITS; ++u) add_unit(u);
    } else {
      for (int u = 0; u < num_units; ++u) add_unit(u);
    }
    for (int c = 0; c < COLUMNS; ++c) {
      for (int k = 1; k < kSums; ++k) total[c][0] = add(total[c][0], total[c][k]);
      const Floats both = mul(scale_w, all(x.scale[static_cast<size_t>(g) * x.ld + c]));
      acc[c] = fma(to_floats(total[c][0]), both, acc[c]);
    }
  }
  const Floats bias = panel_bias(w, panel);
  for (int c = 0; c < COLUMNS; ++c) {
    store(y + c * ld_y + static_cast<size_t>(panel) * kLanes, w.bias ? add(acc[c], bias) : acc[c]);
  }
}

using DirectPanel = void (*)(const Matrix& w, int panel, const QuantizedColumns& x, float* y, size_t ld_y);

template <int FORM, int COLUMNS, bool ZEROS>
DirectPanel direct_panel_for(int num_columns, int num_units) {
  if constexpr (COLUMNS > 1) {
    if (num_columns < COLUMNS) return direct_panel_for<FORM, COLUMNS - 1, ZEROS>(num_columns, num_units);
  }
  if constexpr (kUnrollGroups && !ZEROS && !is_ternary(FORM)) {
    if (num_units == 2) return direct_panel<FORM, COLUMNS, ZEROS, 2>;
    if (num_units == 4) return direct_panel<FORM, COLUMNS, ZEROS, 4>;
  }
  return direct_panel<FORM, COLUMNS, ZEROS, 0>;
}

// Runs of columns, as even as can be: the codes that the first of them reads are near for the others.
template <int FORM, bool ZEROS>
void direct(const Matrix& w, int begin, int end, const QuantizedColumns& x, int num_columns, float* y, size_t ld_y) {
  const int num_runs = (num_columns + kDirectColumns - 1) / kDirectColumns;
  const int least_columns = num_columns / num_runs, num_larger = num_columns % num_runs;
  for (int panel = begin; panel < end; ++panel) {
    for (int run = 0, column = 0; run < num_runs; ++run) {
      const int columns = least_columns + (run < num_larger);
      const DirectPanel run_panel = direct_panel_for<FORM, kDirectColumns, ZEROS>(columns, w.stride / kUnit);
      run_panel(w, panel, x.from(w, column), y + column * ld_y, ld_y);
      column += columns;
    }
  }
}

}  // namespace
}  // namespace penjing
