// What the statements of a compiled kernel need beside device.cuh.
#pragma once
#include <device.cuh>

#include <algorithm>
#include <map>

namespace fibers {

// Of shared memory, which begins at address 0.
inline unsigned char *place(uint64_t address) {
  if (address >= SHARED_BYTES) abort();
  return here->block->shared + address;
}

inline void aligned(const unsigned char *at, unsigned size) {
  if (uintptr_t(at) % size) abort();
}

// Bytes that an arrival counter waits for.
inline std::map<void *, unsigned> expected;

inline void expect(void *counter, unsigned bytes) { expected[counter] = bytes; }

inline void copy(void *to, const void *from, unsigned bytes, void *counter) {
  if (expected[counter] != bytes) abort();
  expected.erase(counter);
  copy_engine(to, from, bytes, (Word *)counter);
}

// Whether the phase of a parity is complete: the one that goes on has the other.
inline bool passed(void *counter, unsigned parity) {
  Word &phases = *(Word *)counter;
  maybe_finish_copy();
  if ((phases & 1) != parity) return true;
  yield();
  return false;
}

template <class Number> Number shl(Number x, unsigned by, unsigned bits) {
  return by < bits ? Number(uint64_t(x) << by) : 0;
}
template <class Number> Number shr(Number x, unsigned by, unsigned bits) {
  return x >> std::min(by, bits - 1) >> (by >= bits);
}

template <class Number> Number insert(Number x, Number into, unsigned from, unsigned count) {
  const Number mask = Number(((count < 64 ? uint64_t(1) << count : 0) - 1) << from);
  return (into & ~mask) | (Number(uint64_t(x) << from) & mask);
}

// Rounded down.
inline float fma_down(float a, float b, float c) {
  const double sum = double(a) * b + c;
  const float near = float(sum);
  return near > sum ? std::nextafter(near, -INFINITY) : near;
}

}  // namespace fibers
