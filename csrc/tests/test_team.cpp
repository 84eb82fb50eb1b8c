// Shared work: everything is done once, whoever comes for it, and nobody waits for a thread that is held up.
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "ops/team.h"
#include "tests/check.h"
#include "tests/tiny_model.h"

namespace penjing {
namespace {

void test_each_once(int threads) {
  Team team(threads);
  for (int count : {0, 1, 2, 3, 17, 64, 1000}) {
    std::vector<std::atomic<int>> done(static_cast<size_t>(count));
    team.run([&](int thread) {
      for (int round = 0; round < 20; ++round) {
        team.share_out(count, thread, [&](Range part) {
          for (int i = part.begin; i < part.end; ++i) done[static_cast<size_t>(i)].fetch_add(1);
        });
        team.barrier();
      }
    });
    bool once = true;
    for (const std::atomic<int>& times : done) once = once && times == 20;
    check(once, std::to_string(count) + " parts, each once a round, by " + std::to_string(threads) + " threads");
  }
}

// One thread does not come back from its first part until all the rest is done: the others must have done it.
void test_held_up(int threads) {
  Team team(threads);
  constexpr int kCount = 200;
  std::atomic<int> done{0};
  std::atomic<bool> in_time{true};
  team.run([&](int thread) {
    bool first = true;
    team.share_out(kCount, thread, [&](Range part) {
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
      while (thread == 0 && first && done < kCount - part.size()) {
        if (std::chrono::steady_clock::now() > deadline) in_time = first = false;
        std::this_thread::yield();
      }
      first = false;
      done += part.size();
    });
  });
  check(in_time && done == kCount, std::to_string(threads) + " threads help one that is held up");
}

}  // namespace

void test_team() {
  for (int threads : {1, 2, 3, 5}) test_each_once(threads);
  for (int threads : {1, 2, 4}) test_held_up(threads);
}

}  // namespace penjing
