// Counting checks, and comparing floats bit for bit.
#pragma once
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace penjing {

struct Counts {
  int passed = 0, failed = 0;
};
inline Counts& counts() {
  static Counts all;
  return all;
}

inline void check(bool ok, const std::string& what) {  // from any thread
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  ++(ok ? counts().passed : counts().failed);
  if (!ok && counts().failed <= 20) std::printf("FAILED %s\n", what.c_str());
}

// Same bits; every NaN counts as the same.
inline bool same(float a, float b) { return (a != a && b != b) || std::memcmp(&a, &b, sizeof a) == 0; }

inline bool same(const float* a, const float* b, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    if (!same(a[i], b[i])) return false;
  }
  return true;
}
inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same(a.data(), b.data(), a.size());
}

// An array no one has written yet: every float in it is a NaN that no kernel produces.
inline std::vector<float> poisoned(size_t n) {
  std::vector<float> out(n);
  std::memset(out.data(), 0xff, n * sizeof(float));
  return out;
}
inline bool is_poison(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits == 0xffffffffu;
}

struct Tables {
  Tables() : table(available_kernels(&count)) {}
  const Kernels* const* begin() const { return table; }
  const Kernels* const* end() const { return table + count; }
  const Kernels& oracle() const { return *table[0]; }
  int count = 0;
  const Kernels* const* table;
};

void test_linear(const Tables& tables);
void test_vectors(const Tables& tables);
void test_attend(const Tables& tables);

}  // namespace penjing
