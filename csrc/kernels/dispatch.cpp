// Which table of kernels this CPU runs.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels/tables.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace penjing {
namespace {

constexpr int kMaxTables = 6;

struct Tables {
  const Kernels* table[kMaxTables];
  int count;
};

#if defined(__x86_64__)
// Compilers learned the name of AVX-VNNI late: leaf 7.1, EAX bit 4. Whether the system keeps the registers is what
// "avx2" says.
bool has_avxvnni() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}

#if defined(PENJING_AMX)
// AMX-TILE and AMX-INT8 (leaf 7, EDX bits 24 and 25), registers that the system saves (XCR0 bits 17 and 18), and the
// system's leave to use them, which a process has to ask for.
bool has_amx() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx, xcr0_high, xcr0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx >> 24 & 3) != 3) return false;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> 27 & 1)) return false;  // OSXSAVE: xgetbv is there
  asm volatile("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
  if ((xcr0 >> 17 & 3) != 3) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif
#endif

#if defined(__aarch64__) && defined(PENJING_I8MM)
bool has_i8mm() {
#if defined(__linux__)
  constexpr unsigned long kI8mm = 1UL << 13;  // HWCAP2_I8MM, which older headers lack
  return getauxval(AT_HWCAP2) & kI8mm;
#else
  return false;  // not asked for yet: Apple M1 has none
#endif
}
#endif

Tables find_tables() {
  Tables found = {{&kScalarKernels}, 1};
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  if (__builtin_cpu_supports("sse4.1")) found.table[found.count++] = &kSse41Kernels;
  if (avx2) found.table[found.count++] = &kAvx2Kernels;
#if defined(PENJING_AVXVNNI)
  if (avx2 && has_avxvnni()) found.table[found.count++] = &kAvxVnniKernels;
#endif
  if (avx2 && avx512) found.table[found.count++] = &kAvx512VnniKernels;
#if defined(PENJING_AMX)
  if (avx2 && avx512 && has_amx()) found.table[found.count++] = &avx512amx_kernels();
#endif
#elif defined(__aarch64__)
#if defined(__linux__)
  const unsigned long needed = HWCAP_ASIMDDP | HWCAP_ASIMDHP | HWCAP_FPHP;
  const bool neon = (getauxval(AT_HWCAP) & needed) == needed;
#else
  const bool neon = true;  // every Apple M
#endif
  if (neon) found.table[found.count++] = &kNeonKernels;
#if defined(PENJING_I8MM)
  if (neon && has_i8mm()) found.table[found.count++] = &kNeonI8mmKernels;
#endif
#endif
  return found;
}

const Tables& tables() {
  static const Tables found = find_tables();
  return found;
}

const Kernels& choose() {
  const Tables& found = tables();
  const char* wanted = std::getenv("PENJING_ISA");
  if (!wanted || !*wanted) return *found.table[found.count - 1];
  std::string names;
  for (int i = 0; i < found.count; ++i) {
    if (std::string(wanted) == found.table[i]->name) return *found.table[i];
    names += std::string(i ? ", " : "") + found.table[i]->name;
  }
  throw std::runtime_error("PENJING_ISA=" + std::string(wanted) + " cannot run here; this CPU runs " + names);
}

size_t round_up_lanes(int n) { return (static_cast<size_t>(n) + kLanes - 1) / kLanes * kLanes; }

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const Kernels* const* available_kernels(int* count) {
  *count = tables().count;
  return tables().table;
}

// Panels with a byte a code and float scales.
size_t linear_scratch_bytes(const Matrix& w) {
  if (w.kind != PJ_CODES) return 0;
  return static_cast<size_t>(w.num_groups) * kMaxTilePanels * (static_cast<size_t>(w.stride) + sizeof(float)) * kLanes;
}

// Weighted sums of the values for a tile of queries, and the queries' codes.
size_t attend_scratch_bytes(int head_dim, int num_queries) {
  return static_cast<size_t>(num_queries < kMaxQueryTile ? num_queries : kMaxQueryTile) * round_up_lanes(head_dim) *
         (sizeof(float) + 1);
}

}  // namespace penjing
