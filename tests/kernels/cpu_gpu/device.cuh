// The twin of kernels/cuda/device.cuh for a CPU, and of what CUDA C++ brings: every thread of every block is a fiber,
// and one operating system's thread runs them in an order that a seed decides. A fiber goes on until it must wait for
// others: at __syncthreads, at a shuffle, or when a word is not there yet. Copies of the copy engine happen at once or
// late, as the seed decides, too; new shared memory is full of NaN. So what reads too early, or writes too soon, is
// found: not by every seed, but by some.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#define DEVICE inline
#define __global__
#define __launch_bounds__(...)
#define SHARED_ROOM(name) unsigned char *name = fibers::here->block->shared

typedef unsigned long long Word;
struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};

namespace fibers {

struct Copy {
  void *to;
  const void *from;
  unsigned bytes;
  Word *counter;
};

// The fibers of a block.
struct Fellows {
  unsigned index;
  unsigned char *shared;
  unsigned at_barrier = 0, barriers = 0, done = 0;
  // For each warp: what its lanes have brought, of two meetings in turns, how many have, and how many meetings were.
  Word brought[THREADS / 32][2][32];
  unsigned arrived[THREADS / 32] = {}, meetings[THREADS / 32] = {};
  std::vector<Copy> copies;
};

struct Fiber {
  // Where it begins, and where it goes on: jumps make no call of the system, which changes of context do.
  ucontext_t beginning;
  jmp_buf place;
  bool begun = false;
  std::unique_ptr<char[]> stack;
  Fellows *block;
  unsigned thread;
  bool done = false;
};

inline Fiber *here;
inline jmp_buf scheduler;
inline std::mt19937 chance;
// Whether anything has happened that another fiber may have waited for.
inline bool progress;

inline void yield() {
  if (!_setjmp(here->place)) _longjmp(scheduler, 1);
}

// Let it run until it yields.
inline void resume(Fiber &fiber) {
  here = &fiber;
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.beginning);
}

inline void finish_copy(Fellows &block, size_t i) {
  Copy copy = block.copies[i];
  block.copies.erase(block.copies.begin() + i);
  memcpy(copy.to, copy.from, copy.bytes);
  // Phases that are complete.
  ++*copy.counter;
  progress = true;
}

inline void maybe_finish_copy() {
  Fellows &block = *here->block;
  if (!block.copies.empty() && chance() % 4 == 0) finish_copy(block, chance() % block.copies.size());
}

inline unsigned lane() { return here->thread % 32; }

}  // namespace fibers

inline const struct {
  struct {
    operator unsigned() const { return fibers::here->thread; }
  } x;
} threadIdx{};
inline const struct {
  struct {
    operator unsigned() const { return fibers::here->block->index; }
  } x;
} blockIdx{};

inline void __syncthreads() {
  fibers::Fellows &block = *fibers::here->block;
  const unsigned mine = block.barriers;
  if (++block.at_barrier == THREADS) {
    block.at_barrier = 0;
    ++block.barriers;
    fibers::progress = true;
  }
  while (block.barriers == mine) fibers::yield();
}

template <class Number> Number __shfl_sync(unsigned, Number x, int from) {
  static_assert(sizeof(Number) <= sizeof(Word), "");
  fibers::Fellows &block = *fibers::here->block;
  const unsigned warp = fibers::here->thread / 32, meeting = block.meetings[warp];
  Word(&brought)[32] = block.brought[warp][meeting % 2];
  Word word = 0;
  memcpy(&word, &x, sizeof x);
  brought[fibers::lane()] = word;
  if (++block.arrived[warp] == 32) {
    block.arrived[warp] = 0;
    ++block.meetings[warp];
    fibers::progress = true;
  }
  while (block.meetings[warp] == meeting) fibers::yield();
  word = brought[from];
  memcpy(&x, &word, sizeof x);
  return x;
}
template <class Number> Number __shfl_xor_sync(unsigned all, Number x, int mask) {
  return __shfl_sync(all, x, int(fibers::lane()) ^ mask);
}

inline void fence() {}

inline Word load_word(const Word *from) { return *from; }
inline void store_word(Word *to, Word word) {
  *to = word;
  fibers::progress = true;
}
inline void still_waiting(unsigned) { fibers::yield(); }

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
inline float __int_as_float(int bits) { return __uint_as_float(unsigned(bits)); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned select) {
  const Word both = Word(high) << 32 | low;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= unsigned(both >> (select >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
  return out;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }

inline float half_to_float(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float size = exponent ? std::ldexp(float(1024 + fraction), exponent - 25) : std::ldexp(float(fraction), -24);
  return bits & 0x8000 ? -size : size;
}
inline unsigned short float_to_half(float x) {
  // Rounded to a multiple of the step between neighbours of its size, or of the least ones.
  int exponent;
  std::frexp(x, &exponent);
  const int step = std::max(exponent - 11, -24);
  const float size = std::fabs(std::nearbyint(std::ldexp(x, -step)));
  int bits = step == -24 ? int(size) : (step + 24) * 1024 + int(size);
  return (unsigned short)((std::signbit(x) ? 0x8000 : 0) | bits);
}

inline uint4 stream_16(const void *from) {
  if (uintptr_t(from) % 16) abort();
  uint4 got;
  memcpy(&got, from, 16);
  return got;
}
inline uint2 stream_8(const void *from) {
  if (uintptr_t(from) % 8) abort();
  uint2 got;
  memcpy(&got, from, 8);
  return got;
}
inline float shared_by_all(const float *from) { return *from; }
inline unsigned shared_by_all(const unsigned *from) {
  if (uintptr_t(from) % 4) abort();
  return *from;
}
inline unsigned short shared_by_all(const unsigned short *from) { return *from; }
inline void prefetch(const void *) {}

#define COPY_ENGINE 1
inline void start_counter(Word *counter) { *counter = 0; }
inline void copy_engine(void *to, const void *from, unsigned bytes, Word *counter) {
  if (uintptr_t(to) % 16 || uintptr_t(from) % 16 || bytes % 16) abort();
  fibers::Fellows &block = *fibers::here->block;
  block.copies.push_back({to, from, bytes, counter});
  if (fibers::chance() % 2) fibers::finish_copy(block, block.copies.size() - 1);
}
inline bool copied(Word *counter, unsigned count) {
  fibers::maybe_finish_copy();
  if (*counter > count + 1 || *counter < count) abort();
  return *counter == count + 1;
}
