// A team of threads that runs one function together, in step.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "ops/range.h"

namespace penjing {

// A counter that threads wait on: a short spin, then giving way while that is cheap, then sleep.
class Gate {
 public:
  uint32_t count() const { return count_.load(std::memory_order_acquire); }
  // Everything before open() is visible to whoever returns from wait_past().
  void open();
  void wait_past(uint32_t seen);

 private:
  bool spin_past(uint32_t seen, int spins) const;

  std::atomic<uint32_t> count_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// num_threads - 1 workers and the caller. One thread: no workers, and a barrier costs a comparison.
class Team {
 public:
  explicit Team(int num_threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Calls body(thread) on every thread, 0 being the caller, and returns when all are done. The body must not throw.
  template <class Body>
  void run(Body&& body) {
    using Function = std::remove_reference_t<Body>;
    run_job([](void* context, int thread) { (*static_cast<Function*>(context))(thread); }, &body);
  }

  // Inside run(), by every thread: nobody goes on before all are here.
  void barrier();

  // Inside run(), by every thread, at most once between two barriers: body(part) for parts of [0, count), each on
  // whichever thread comes for it first. A thread begins with its own share, half of what is left of it at a time, then
  // helps the others, so that nobody waits long for a thread that has a slower core or shares it with another program.
  template <class Body>
  void share_out(int count, int thread, Body&& body) {
    if (size_ == 1) return body(Range{0, count});
    for (int i = 0; i < size_; ++i) {
      const int owner = (thread + i) % size_;
      const Range share = split(count, size_, owner);
      for (Range part = take(share, owner); !part.empty(); part = take(share, owner)) body(part);
    }
  }

 private:
  using Job = void (*)(void* context, int thread);
  struct alignas(64) Taken {
    std::atomic<int> count{0};
  };

  void run_job(Job job, void* context);
  Range take(Range share, int owner);
  void work(int thread);
  void stop();

  const int size_;
  Job job_ = nullptr;  // null tells the workers to leave
  void* context_ = nullptr;
  Gate start_, passed_;
  alignas(64) std::atomic<int> arrived_{0};
  std::unique_ptr<Taken[]> taken_;  // [thread] of its share, since the last barrier
  std::vector<std::thread> workers_;
};

}  // namespace penjing
