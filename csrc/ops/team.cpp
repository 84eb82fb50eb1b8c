#include "ops/team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penjing {
namespace {

// The others are usually there within a microsecond; on a busy machine a longer spin only burns the time slice that
// this thread will miss (measured with 5 runnable threads on 2 CPUs: 2000 spins decode at a fifth of the speed of 20).
constexpr int kSpins = 20;
// Then giving way, so that more threads than CPUs work too. An idle scheduler comes back within a microsecond, while
// waking up from sleep costs some 10 to 50.
constexpr int kYields = 100;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // unlike `yield`, it really waits
#endif
}

}  // namespace

void Gate::open() {
  // Sequentially consistent with the sleeper's pair below: either it sees the new count or we see the sleeper.
  count_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
  }
  wake_.notify_all();
}

void Gate::wait_past(uint32_t seen) {
  for (int i = 0; i < kSpins; ++i, relax()) {
    if (count() != seen) return;
  }
  for (int i = 0; i < kYields; ++i) {
    if (count() != seen) return;
    std::this_thread::yield();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return count_.load(std::memory_order_seq_cst) != seen; });
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

Team::Team(int num_threads) : size_(num_threads) {
  try {
    for (int thread = 1; thread < size_; ++thread) workers_.emplace_back(&Team::work, this, thread);
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  job_ = nullptr;
  start_.open();
  for (std::thread& worker : workers_) worker.join();
}

void Team::work(int thread) {
  for (uint32_t round = 0;; ++round) {
    start_.wait_past(round);
    if (!job_) return;
    job_(context_, thread);
    barrier();
  }
}

void Team::run_job(Job job, void* context) {
  if (size_ == 1) return job(context, 0);
  job_ = job;
  context_ = context;
  start_.open();
  job(context, 0);
  barrier();
}

void Team::barrier() {
  if (size_ == 1) return;
  const uint32_t round = passed_.count();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);  // before the gate opens, so the next round starts from 0
    passed_.open();
  } else {
    passed_.wait_past(round);
  }
}

}  // namespace penjing
