// Every kernel, written once on the lanes that the including ISA file defines. All of it has internal linkage:
// these functions are compiled with different instruction sets, and the linker must never merge them. For the same
// reason nothing here instantiates a function template of the standard library.
// clang-format off: each stands on those above it
#include "kernels/maths.inl"
#include "kernels/vectors.inl"
#include "kernels/quantize.inl"
#include "kernels/linear_float.inl"
#include "kernels/row_dots.inl"
#include "kernels/unpack.inl"
#include "kernels/linear_direct.inl"
#include "kernels/linear_codes.inl"
#include "kernels/cache.inl"
#include "kernels/softmax.inl"
#include "kernels/attend_floats.inl"
#include "kernels/attend_codes.inl"
#include "kernels/attend.inl"
// clang-format on

namespace penjing {
namespace {

constexpr Kernels kernel_table(const char* name) {
  return {name, quantize_columns, linear_codes, linear_float, row_dots, read_row,   rms_norm,  layer_norm,
          rope, activate,         add_scaled,   store_kv,     attend,   probe_read, probe_int8};
}

}  // namespace
}  // namespace penjing
