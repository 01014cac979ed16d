// A team of threads that lives for one call and meets at spin barriers: a decode step has hundreds of exchanges of a few
// microseconds, too short for a kernel wait.
#pragma once

#include <sched.h>

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

// Each thread tells in a cache line of its own how often it has arrived, and reads those of the others: the way from the
// last one's arrival to the others' leaving is one transfer between cores, where a shared counter takes three.
class Barrier {
 public:
  explicit Barrier(int count) : flags_(count) {}

  // Some microseconds, longer than threads that all run wait for each other.
  static constexpr int patience = 200;

  // While it waits, a thread fetches [next, end), what it will read first, into its cache.
  void wait(int id, const char *next = nullptr, const char *end = nullptr) {
    const unsigned arrived = flags_[id].arrived.load(std::memory_order_relaxed) + 1;
    flags_[id].arrived.store(arrived, std::memory_order_release);
    for (auto &flag : flags_) {
      for (int spins = 0; int(flag.arrived.load(std::memory_order_acquire) - arrived) < 0; ++spins) {
        if (next < end) {
          __builtin_prefetch(next);
          next += 64;
        } else if (spins > patience) {
          // On a busy machine a partner may not be running at all, or wait for this very core.
          sched_yield();
        } else if (spins > 100) {
#if defined(__x86_64__)
          __builtin_ia32_pause();
#endif
        }
      }
    }
  }

 private:
  struct alignas(128) Flag {
    std::atomic<unsigned> arrived{0};
  };
  std::vector<Flag> flags_;
};

// work(0) ... work(threads - 1), each on a thread of its own, the first on this one. Throws std::system_error, with
// nothing done, where the system has no room for so many.
template <typename Work>
void run_team(int threads, Work work) {
  enum { WAIT, GO, LEAVE };
  // Until all are there: one alone would wait at the first barrier for ever.
  std::atomic<int> order{WAIT};
  auto begin = [&](int id) {
    while (order.load(std::memory_order_acquire) == WAIT) sched_yield();
    if (order.load(std::memory_order_relaxed) == GO) work(id);
  };
  std::vector<std::thread> team;
  auto end = [&](int how) {
    order.store(how, std::memory_order_release);
    if (how == GO) work(0);
    for (auto &thread : team) thread.join();
  };
  try {
    team.reserve(threads);
    for (int id = 1; id < threads; ++id) team.emplace_back(begin, id);
  } catch (...) {
    end(LEAVE);
    throw;
  }
  end(GO);
}

// The part [first, last) of `count` that thread `id` takes.
struct Share {
  int first, last;
  Share(int first, int last) : first(first), last(last) {}
  Share(int count, int id, int threads)
      : first(int(int64_t(count) * id / threads)), last(int(int64_t(count) * (id + 1) / threads)) {}
};
