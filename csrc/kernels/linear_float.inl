// Matrices of floats: panels of 16 rows, one fused multiply-add an input, in the order of the inputs.
namespace penjing {
namespace {

template <pj_kind KIND>
inline Floats load_kind(const uint8_t* p) {
  if constexpr (KIND == PJ_F32) return load(p);
  if constexpr (KIND == PJ_F16) return load_f16(p);
  if constexpr (KIND == PJ_BF16) return load_bf16(p);
}

inline Floats panel_bias(const Matrix& w, int panel) {
  const int first = panel * kLanes, rest = w.rows - first;
  if (!w.bias) return all(0.0f);
  return rest >= kLanes ? load(w.bias + first) : load_first(w.bias + first, rest);
}

template <pj_kind KIND, int PANELS, int COLUMNS>
void float_tile(const Matrix& w, int panel, const float* x, float* y, size_t ld_y) {
  constexpr size_t kStep = KIND == PJ_F32 ? 64 : 32;
  const uint8_t* weight = w.data + panel * w.panel_bytes;
  Floats acc[PANELS][COLUMNS];
#pragma GCC unroll 8
  for (int p = 0; p < PANELS; ++p) {
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) acc[p][c] = all(0.0f);
  }
  for (int i = 0; i < w.cols; ++i) {
    Floats value[PANELS];
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) value[p] = load_kind<KIND>(weight + p * w.panel_bytes + i * kStep);
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) {
      const Floats input = all(x[static_cast<size_t>(c) * w.cols + i]);
#pragma GCC unroll 8
      for (int p = 0; p < PANELS; ++p) acc[p][c] = fma(value[p], input, acc[p][c]);
    }
  }
  for (int p = 0; p < PANELS; ++p) {
    const Floats bias = panel_bias(w, panel + p);
    for (int c = 0; c < COLUMNS; ++c) {
      float* out = y + c * ld_y + static_cast<size_t>(panel + p) * kLanes;
      store(out, w.bias ? add(acc[p][c], bias) : acc[p][c]);
    }
  }
}

// All columns of PANELS panels, in tiles of COLUMNS and then of one fewer until none are left.
template <pj_kind KIND, int PANELS, int COLUMNS>
void float_columns(const Matrix& w, int panel, const float* x, int num_columns, float* y, size_t ld_y) {
  for (; num_columns >= COLUMNS;
       num_columns -= COLUMNS, x += static_cast<size_t>(COLUMNS) * w.cols, y += COLUMNS * ld_y) {
    float_tile<KIND, PANELS, COLUMNS>(w, panel, x, y, ld_y);
  }
  if constexpr (COLUMNS > 1) {
    if (num_columns) float_columns<KIND, PANELS, COLUMNS - 1>(w, panel, x, num_columns, y, ld_y);
  }
}

template <pj_kind KIND>
void float_panels(const Matrix& w, int begin, int end, const float* x, int num_columns, float* y, size_t ld_y) {
  for (; begin + kFloatPanels <= end; begin += kFloatPanels) {
    float_columns<KIND, kFloatPanels, kFloatColumns>(w, begin, x, num_columns, y, ld_y);
  }
  for (; begin < end; ++begin) float_columns<KIND, 1, kFloatColumns>(w, begin, x, num_columns, y, ld_y);
}

void linear_float(const Matrix& w, int panel_begin, int panel_end, const float* x, int num_columns, float* y,
                  size_t ld_y) {
  if (w.kind == PJ_F32) return float_panels<PJ_F32>(w, panel_begin, panel_end, x, num_columns, y, ld_y);
  if (w.kind == PJ_F16) return float_panels<PJ_F16>(w, panel_begin, panel_end, x, num_columns, y, ld_y);
  float_panels<PJ_BF16>(w, panel_begin, panel_end, x, num_columns, y, ld_y);
}

}  // namespace
}  // namespace penjing
