// Few long rows times columns: dot products whose lanes are inputs, where panels would leave one chain of sums.
namespace penjing {
namespace {

template <pj_kind KIND>
inline Floats load_row(const void* p, int n) {
  if constexpr (KIND == PJ_F32) return n >= kLanes ? load(p) : load_first(p, n);
  return n >= kLanes ? load_f16(p) : load_f16_first(p, n);
}

template <pj_kind KIND, int ROWS, int COLUMNS>
void dots_tile(const uint8_t* rows, int cols, const float* x, float* out, size_t ld_out) {
  constexpr size_t kElement = KIND == PJ_F32 ? 4 : 2;
  const size_t stride = static_cast<size_t>(cols);
  Floats acc[ROWS][COLUMNS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; ++c) acc[r][c] = all(0.0f);
  }
  for (int i = 0; i < cols; i += kLanes) {
    Floats input[COLUMNS];
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; ++c) input[c] = load_row<PJ_F32>(x + c * stride + i, cols - i);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const Floats weight = load_row<KIND>(rows + (r * stride + i) * kElement, cols - i);
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS; ++c) acc[r][c] = fma(weight, input[c], acc[r][c]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int c = 0; c < COLUMNS; ++c) out[c * ld_out + r] = reduce_add(acc[r][c]);
  }
}

// All rows of COLUMNS columns, in tiles of ROWS and then of half as many until none are left.
template <pj_kind KIND, int ROWS, int COLUMNS>
void dots_rows(const uint8_t* rows, int num_rows, int cols, const float* x, float* out, size_t ld_out) {
  constexpr size_t kElement = KIND == PJ_F32 ? 4 : 2;
  for (; num_rows >= ROWS; num_rows -= ROWS, rows += ROWS * kElement * cols, out += ROWS) {
    dots_tile<KIND, ROWS, COLUMNS>(rows, cols, x, out, ld_out);
  }
  if constexpr (ROWS > 1) {
    if (num_rows) dots_rows<KIND, ROWS / 2, COLUMNS>(rows, num_rows, cols, x, out, ld_out);
  }
}

template <pj_kind KIND>
void dots_columns(const uint8_t* rows, int num_rows, int cols, const float* x, int num_columns, float* out) {
  const size_t ld_out = static_cast<size_t>(num_rows);
  for (; num_columns >= kFloatColumns; num_columns -= kFloatColumns) {
    dots_rows<KIND, kFloatPanels, kFloatColumns>(rows, num_rows, cols, x, out, ld_out);
    x += static_cast<size_t>(kFloatColumns) * cols, out += kFloatColumns * ld_out;
  }
  for (; num_columns > 0; --num_columns, x += cols, out += ld_out) {  // as many sums at once, of more rows
    dots_rows<KIND, kFloatPanels * kFloatColumns, 1>(rows, num_rows, cols, x, out, ld_out);
  }
}

void row_dots(const void* rows, pj_kind kind, int num_rows, int cols, const float* x, int num_columns, float* out) {
  const uint8_t* bytes = static_cast<const uint8_t*>(rows);
  if (kind == PJ_F32) return dots_columns<PJ_F32>(bytes, num_rows, cols, x, num_columns, out);
  dots_columns<PJ_F16>(bytes, num_rows, cols, x, num_columns, out);
}

}  // namespace
}  // namespace penjing
