// The tables that the ISA files fill, and sizes that all of them share. Which of them exist depends on the target.
#pragma once
#include "kernels/kernels.h"

namespace penjing {

constexpr int kLanes = PJ_LANES;
constexpr int kUnit = 16;          // inputs that are unpacked at once; a group is padded to whole units
constexpr int kTernaryUnits = 5;   // units of ternary codes that share 4 * 64 bytes
constexpr int kMaxTilePanels = 2;  // panels unpacked into scratch at once
constexpr int kMaxQueryTile = 4;   // queries that share a load of keys and values

// The zero point of a matrix without zeros, of codes as kernels unpack them: see Cursor in linear_codes.inl.
constexpr int symmetric_zero(const Matrix& w) {
  if (w.levels == PJ_BOOK) return 128;
  return w.levels == PJ_TERNARY || w.bits == 1 ? 1 : 1 << (w.bits - 1);
}

extern const Kernels kScalarKernels;
extern const Kernels kSse41Kernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvxVnniKernels;
extern const Kernels kAvx512VnniKernels;
extern const Kernels kNeonKernels;
extern const Kernels kNeonI8mmKernels;
const Kernels& avx512amx_kernels();  // made of AVX-512's

}  // namespace penjing
