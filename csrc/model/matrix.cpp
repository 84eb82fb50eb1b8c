#include <algorithm>

#include "model/model.h"
#include "ops/error.h"

namespace penjing {
namespace {

constexpr int kMaxSize = 1 << 24;
// A group's sum of code * activation must fit int32 and its largest terms are 255 * 127.
constexpr int kMaxStride = INT32_MAX / (255 * 127);

bool aligned(const void* pointer, size_t alignment) { return reinterpret_cast<uintptr_t>(pointer) % alignment == 0; }

void check_levels(const char* name, const pj_matrix& m) {
  const bool known = m.levels == PJ_UNIFORM || (m.levels == PJ_TERNARY && m.bits == 2) ||
                     (m.levels == PJ_BOOK && m.bits >= 2 && m.bits <= 4);
  if (!known) fail(PJ_BAD_ARGUMENT, "%s: levels %d of %d bits", name, m.levels, m.bits);
  if ((m.levels == PJ_BOOK) != (m.book != nullptr)) fail(PJ_BAD_ARGUMENT, "%s: a book missing or too many", name);
  if (m.zeros && (m.levels != PJ_UNIFORM || m.bits == 1)) fail(PJ_BAD_ARGUMENT, "%s: codes without zeros", name);
}

size_t codes_bytes(const Matrix& m) {  // of a panel
  const size_t units = static_cast<size_t>(m.num_groups) * m.stride / PJ_LANES;
  if (m.levels == PJ_TERNARY) return 64 * (units / 5 * 4 + units % 5);
  return units * PJ_LANES * PJ_LANES * m.bits / 8;
}

void check_codes(const char* name, const pj_matrix& m) {
  const bool known = m.bits >= 1 && m.bits <= 8 && m.bits != 7;
  if (!known) fail(PJ_BAD_ARGUMENT, "%s: %d bits, where 1, 2, 3, 4, 5, 6 and 8 are known", name, m.bits);
  check_levels(name, m);
  if (m.group_size <= 0 || m.cols % m.group_size) {
    fail(PJ_BAD_ARGUMENT, "%s: group_size %d does not divide %d inputs", name, m.group_size, m.cols);
  }
  if (m.group_size > kMaxStride / PJ_LANES * PJ_LANES) {
    fail(PJ_BAD_ARGUMENT, "%s: sums over groups of %d do not fit 32 bits", name, m.group_size);
  }
  if (!m.scales) fail(PJ_BAD_ARGUMENT, "%s: codes without scales", name);
  if (m.scale_bits != 8 && m.scale_bits != 16) fail(PJ_BAD_ARGUMENT, "%s: scales of %d bits", name, m.scale_bits);
  if (!aligned(m.scales, m.scale_bits / 8)) fail(PJ_BAD_ARGUMENT, "%s: scales are not aligned", name);
}

void check_floats(const char* name, const pj_matrix& m) {
  if (m.scales || m.zeros || m.book || m.levels || m.scale_bits) {
    fail(PJ_BAD_ARGUMENT, "%s: what codes have beside floats", name);
  }
  if (!aligned(m.data, m.kind == PJ_F32 ? 4 : 2)) fail(PJ_BAD_ARGUMENT, "%s: weights are not aligned", name);
}

}  // namespace

Matrix check_matrix(const char* name, const pj_matrix& m) {
  if (m.kind == PJ_ABSENT) return Matrix{};
  if (m.kind < PJ_ABSENT || m.kind > PJ_BF16) fail(PJ_BAD_ARGUMENT, "%s: unknown kind %d", name, m.kind);
  if (m.rows < 1 || m.cols < 1 || m.rows > kMaxSize || m.cols > kMaxSize) {
    fail(PJ_BAD_ARGUMENT, "%s: %d outputs by %d inputs", name, m.rows, m.cols);
  }
  if (!m.data) fail(PJ_BAD_ARGUMENT, "%s: no weights", name);
  if (!aligned(m.bias, 4)) fail(PJ_BAD_ARGUMENT, "%s: bias is not aligned", name);

  Matrix out{};
  out.kind = static_cast<pj_kind>(m.kind);
  out.data = static_cast<const uint8_t*>(m.data);
  out.bias = m.bias;
  out.rows = m.rows;
  out.cols = m.cols;
  out.num_panels = (m.rows + PJ_LANES - 1) / PJ_LANES;
  const size_t cols = static_cast<size_t>(m.cols);
  if (m.kind == PJ_CODES) {
    check_codes(name, m);
    out.scales = static_cast<const uint8_t*>(m.scales);
    out.scale_bytes = m.scale_bits / 8;
    out.zeros = static_cast<const uint8_t*>(m.zeros);
    out.bits = m.bits;
    out.group_size = m.group_size;
    out.num_groups = m.cols / m.group_size;
    out.stride = (m.group_size + PJ_LANES - 1) / PJ_LANES * PJ_LANES;
    out.levels = static_cast<pj_levels>(m.levels);
    out.book = m.book;
    out.panel_bytes = codes_bytes(out);
  } else {
    check_floats(name, m);
    out.panel_bytes = cols * PJ_LANES * (m.kind == PJ_F32 ? 4 : 2);
  }
  return out;
}

Matrix panels_of(const Matrix& m, int begin, int end) {
  Matrix part = m;
  const size_t first = static_cast<size_t>(begin);
  part.data += first * m.panel_bytes;
  if (m.scales) part.scales += first * m.num_groups * PJ_LANES * m.scale_bytes;
  if (m.zeros) part.zeros += first * m.num_groups * PJ_LANES;
  if (m.bias) part.bias += first * PJ_LANES;
  part.rows = std::min(m.rows, end * PJ_LANES) - begin * PJ_LANES;
  part.num_panels = end - begin;
  return part;
}

}  // namespace penjing
