// All memory of a session in one allocation. The same code runs twice: first to count, then to hand out.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace penjing {

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { std::free(base_); }

  // Room for `count` elements, aligned to a cache line; null while counting.
  template <class T>
  T* take(size_t count) {
    size_t bytes, end;
    if (__builtin_mul_overflow(count, sizeof(T), &bytes) || bytes > SIZE_MAX / 2 ||
        __builtin_add_overflow(used_, (bytes + kAlign - 1) / kAlign * kAlign, &end)) {
      throw std::bad_alloc();
    }
    void* place = base_ ? base_ + used_ : nullptr;
    used_ = end;
    return static_cast<T*>(place);
  }

  // Turns what was counted into memory. Untouched pages cost nothing until they are used.
  void allocate() {
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlign, used_ + kAlign) != 0) throw std::bad_alloc();
    base_ = static_cast<uint8_t*>(memory);
    size_ = used_;
    used_ = 0;
#ifdef PENJING_POISON
    std::memset(base_, 0xFF, size_);  // NaN as float32 and as float16: a read before a write shows
#endif
  }

  size_t size() const { return size_; }

 private:
  static constexpr size_t kAlign = 64;
  uint8_t* base_ = nullptr;
  size_t used_ = 0, size_ = 0;
};

}  // namespace penjing
