// What this machine can do: the limits that speeds are compared with.
#pragma once
#include <cstddef>

namespace penjing {

// Bytes/s that num_threads together read from a buffer that should be larger than the caches.
double probe_read(size_t buffer_bytes, int num_threads, int repeats);
// int8 multiply-adds/s of the kernels' inner loop.
double probe_int8(int num_threads, int repeats);

}  // namespace penjing
