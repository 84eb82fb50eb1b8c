#include "ops/team.h"

#include <algorithm>
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penjing {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// The others are usually there within a microsecond; on a busy machine a longer spin only burns the time slice that
// this thread will miss (measured with 5 runnable threads on 2 CPUs: 2000 spins decode at a fifth of the speed of 20).
constexpr int kSpins = 20;
// Then giving way, so that more threads than CPUs work too. An idle scheduler comes back within a microsecond, while
// waking up from sleep costs some 10 to 50, in a virtual machine, whose idle CPU the host must wake, far more: about a
// millisecond of giving way outlasts what threads differ by where others use their cores (docs/engine.md, Threads).
constexpr int kYields = 2000;
// Where another program wants the CPU, giving way costs its whole time slice, several milliseconds at each barrier
// (measured: 2 tokens/s instead of 87 to 121). So once a yield has taken longer than a team's own threads would, waiting is
// spinning for about as long as waking up takes, then sleep, from which a thread comes back before who computes on.
// Yields are tried again after a while, which doubles as long as that is in vain.
constexpr Clock::duration kForeign = milliseconds{2}, kCrowdedLeast = milliseconds{10},
                          kCrowdedMost = milliseconds{320};
constexpr int kCrowdedSpins = 200;
// The least that a thread takes of shared work. All parts but the last are multiples of it: some tiles take two panels.
constexpr int kLeastTaken = 2;

// Of the machine, so of all teams.
std::atomic<Clock::rep> crowded_until{0}, crowded_for{0};

bool crowded() { return Clock::now().time_since_epoch().count() < crowded_until.load(std::memory_order_relaxed); }

void remember_crowd(Clock::time_point now) {
  const Clock::rep time = now.time_since_epoch().count(), before = crowded_for.load(std::memory_order_relaxed);
  const bool again = time - crowded_until.load(std::memory_order_relaxed) < before;
  const Clock::rep length = again ? std::min(2 * before, kCrowdedMost.count()) : kCrowdedLeast.count();
  crowded_for.store(length, std::memory_order_relaxed);
  crowded_until.store(time + length, std::memory_order_relaxed);
}

// Gives way. Whether it was to another program.
bool yield_to_another() {
  const Clock::time_point before = Clock::now();
  std::this_thread::yield();
  const Clock::time_point after = Clock::now();
  if (after - before < kForeign) return false;
  remember_crowd(after);
  return true;
}

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

bool Gate::spin_past(uint32_t seen, int spins) const {
  for (int i = 0; i < spins; ++i, relax()) {
    if (count() != seen) return true;
  }
  return false;
}

void Gate::wait_past(uint32_t seen) {
  if (spin_past(seen, kSpins)) return;
  if (crowded()) {
    if (spin_past(seen, kCrowdedSpins)) return;
  } else {
    for (int i = 0; i < kYields && !yield_to_another(); ++i) {
      if (count() != seen) return;
    }
  }
  std::unique_lock<std::mutex> lock(mutex_);
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return count_.load(std::memory_order_seq_cst) != seen; });
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

Team::Team(int num_threads) : size_(num_threads), taken_(new Taken[static_cast<size_t>(num_threads)]) {
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

Range Team::take(Range share, int owner) {
  std::atomic<int>& taken = taken_[static_cast<size_t>(owner)].count;
  int done = taken.load(std::memory_order_relaxed), part;
  do {
    const int left = share.size() - done;
    if (left <= 0) return {0, 0};
    part = std::min(left, (left / 2 + kLeastTaken - 1) / kLeastTaken * kLeastTaken);
    if (left - part < kLeastTaken) part = left;
  } while (!taken.compare_exchange_weak(done, done + part, std::memory_order_relaxed));
  return {share.begin + done, share.begin + done + part};
}

void Team::barrier() {
  if (size_ == 1) return;
  const uint32_t round = passed_.count();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    // before the gate opens, so the next round starts from 0
    arrived_.store(0, std::memory_order_relaxed);
    for (int i = 0; i < size_; ++i) taken_[static_cast<size_t>(i)].count.store(0, std::memory_order_relaxed);
    passed_.open();
  } else {
    passed_.wait_past(round);
  }
}

}  // namespace penjing
