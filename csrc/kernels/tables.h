// The tables that the ISA files fill, and sizes that all of them share. Which of them exist depends on the target.
#pragma once
#include "kernels/kernels.h"

namespace penjing {

constexpr int kLanes = PJ_LANES;
constexpr int kUnit = 16;          // inputs that are unpacked at once; a group is padded to whole units
constexpr int kMaxTilePanels = 2;  // panels unpacked into scratch at once
constexpr int kMaxQueryTile = 4;   // queries that share a load of keys and values

extern const Kernels kScalarKernels;
extern const Kernels kSse41Kernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvxVnniKernels;
extern const Kernels kAvx512VnniKernels;
extern const Kernels kNeonKernels;

}  // namespace penjing
