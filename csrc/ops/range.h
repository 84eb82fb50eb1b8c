// Sharing out work by position: the same split on every run, so that nothing depends on timing.
#pragma once
#include <algorithm>
#include <cstdint>

namespace penjing {

struct Range {
  int begin, end;
  int size() const { return end - begin; }
  bool empty() const { return end <= begin; }
};

inline Range intersect(Range a, Range b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

// Part `index` of `parts` nearly equal parts of [0, count).
inline Range split(int count, int parts, int index) {
  return {static_cast<int>(static_cast<int64_t>(count) * index / parts),
          static_cast<int>(static_cast<int64_t>(count) * (index + 1) / parts)};
}

}  // namespace penjing
