#include "model/probe.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "kernels/kernels.h"
#include "ops/arena.h"
#include "ops/team.h"

namespace penjing {
namespace {

constexpr uint64_t kInt8Steps = 1 << 22;

// The shortest of several runs of body(thread) on all threads, because other work on the machine only ever makes a run
// slower. One more run goes before, to warm up.
template <class Body>
double best_seconds(int num_threads, int repeats, Body body) {
  using Clock = std::chrono::steady_clock;
  Team team(num_threads);
  team.run(body);
  double best = 1e30;
  for (int i = 0; i < std::max(1, repeats); ++i) {
    const Clock::time_point start = Clock::now();
    team.run(body);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

}  // namespace

double probe_read(size_t buffer_bytes, int num_threads, int repeats) {
  const Kernels& k = kernels();
  const size_t part = buffer_bytes / static_cast<size_t>(num_threads);
  std::vector<uint8_t*> buffers(static_cast<size_t>(num_threads));
  Arena arena;
  const auto lay_out = [&] {
    for (uint8_t*& buffer : buffers) buffer = arena.take<uint8_t>(part);
  };
  lay_out();
  arena.allocate();
  lay_out();
  for (uint8_t* buffer : buffers) std::memset(buffer, 1, part);  // untouched pages would all be one page of zeros
  std::vector<uint64_t> sums(buffers.size());                    // kept, so that no read can be left out
  const double seconds = best_seconds(num_threads, repeats, [&](int thread) {
    const size_t i = static_cast<size_t>(thread);
    sums[i] = k.probe_read(buffers[i], part);
  });
  return static_cast<double>(part) * num_threads / seconds;
}

double probe_int8(int num_threads, int repeats) {
  const Kernels& k = kernels();
  std::vector<int32_t> sinks(static_cast<size_t>(num_threads));
  std::vector<uint64_t> done(sinks.size());
  const double seconds = best_seconds(num_threads, repeats, [&](int thread) {
    const size_t i = static_cast<size_t>(thread);
    done[i] = k.probe_int8(kInt8Steps, &sinks[i]);
  });
  double total = 0.0;
  for (uint64_t count : done) total += static_cast<double>(count);
  return total / seconds;
}

}  // namespace penjing
