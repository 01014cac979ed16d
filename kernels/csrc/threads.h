// A team of threads that lives for one call and meets at spin barriers: a decode step has hundreds of exchanges of a few
// microseconds, too short for a kernel wait.
#pragma once

#include <sched.h>

#include <atomic>
#include <thread>
#include <vector>

class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}

  void wait() {
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    // On a busy machine a partner may not be running at all: give way after a while.
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins > 2000) {
        sched_yield();
      } else {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
    }
  }

 private:
  const int count_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

template <typename Work>
void run_team(int threads, Work work) {
  std::vector<std::thread> team;
  for (int id = 1; id < threads; ++id) team.emplace_back(work, id);
  work(0);
  for (auto &thread : team) thread.join();
}

// The part [first, last) of `count` that thread `id` takes.
struct Share {
  int first, last;
  Share(int count, int id, int threads)
      : first(int(int64_t(count) * id / threads)), last(int(int64_t(count) * (id + 1) / threads)) {}
};
