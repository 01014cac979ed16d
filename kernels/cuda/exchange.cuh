// What blocks tell each other, and what the threads of one do.
//
// A number travels as a word with a tag: which step and layer it belongs to. Who waits for it reads until the tag is
// right, and has it then: one way through the second-level cache, where a barrier of the whole grid takes two and a
// fence, and the numbers a third (the protocol "LL" of NCCL). A word is written again a layer later by a block that
// has, by then, numbers of all others that they computed after they had read it: see persistent.cu.
#pragma once
#include <device.cuh>

constexpr int WARPS = THREADS / 32;

DEVICE Word tagged(float value, unsigned tag) { return Word(tag) << 32 | __float_as_uint(value); }
DEVICE float value_of(Word word) { return __uint_as_float(unsigned(word)); }

DEVICE void tell(Word *to, float value, unsigned tag) { store_word(to, tagged(value, tag)); }

// Wait for COUNT words, those where `at` points, sixteen of them asked for at a time: for more there are no registers.
// Each must be one that will come: who needs fewer takes one of them again.
template <int COUNT, class At> DEVICE void listen(float (&values)[COUNT], unsigned tag, At at) {
#pragma unroll
  for (int first = 0; first < COUNT; first += 16) {
    bool complete = false;
    for (unsigned polls = 0; !complete; ++polls) {
      if (polls) still_waiting(polls);
      Word words[16];
#pragma unroll
      for (int i = 0; i < 16; ++i)
        if (first + i < COUNT) words[i] = load_word(at(first + i));
      complete = true;
#pragma unroll
      for (int i = 0; i < 16; ++i)
        if (first + i < COUNT) {
          complete = complete && unsigned(words[i] >> 32) == tag;
          values[first + i] = value_of(words[i]);
        }
    }
  }
}

DEVICE float minus_infinity() { return __uint_as_float(0xFF800000u); }
DEVICE float larger(float a, float b) { return a > b ? a : b; }
DEVICE Word larger(Word a, Word b) { return a > b ? a : b; }

DEVICE float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, mask);
  return x;
}

template <class Number> DEVICE Number warp_max(Number x) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) x = larger(x, __shfl_xor_sync(0xFFFFFFFFu, x, mask));
  return x;
}

// Where the warps of a block meet; two in turns, so that one meeting is enough.
struct Meeting {
  Word of_warp[2][WARPS];
};

DEVICE float block_sum(float x, Meeting &meeting, int &turn) {
  Word *room = meeting.of_warp[turn ^= 1];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = __float_as_uint(x);
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp) sum += value_of(room[warp]);
  return sum;
}

DEVICE Word block_max(Word x, Meeting &meeting, int &turn) {
  Word *room = meeting.of_warp[turn ^= 1];
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  Word most = 0;
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp) most = larger(most, room[warp]);
  return most;
}
