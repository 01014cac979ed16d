// A block's rows of a product: it owns outputs first_of(OUTPUTS, block) ... first_of(OUTPUTS, block + 1) - 1 of every
// matrix, whose weights lie output by output.
//
// A warp takes 256 inputs (eight a thread, kept in registers) and several rows; what the warps have of a row is added
// in order. So a sum depends neither on the number of blocks nor on the items beside it.
#pragma once
#include <exchange.cuh>
#include <numbers.cuh>

constexpr int CHUNK = 256;
constexpr int chunks(int inputs) { return (inputs + CHUNK - 1) / CHUNK; }
constexpr int power_of_two(int least) {
  int power = 1;
  while (power < least) power *= 2;
  return power;
}

constexpr int most_rows(int outputs) { return (outputs + GRID - 1) / GRID; }
DEVICE int first_of(int outputs, int block) { return int((long long)outputs * block / GRID); }

// The sums over a warp of COUNT numbers, a power of two: lane l's is that of number l * COUNT / 32. Lanes give half of
// what they have for half of what others have, as long as they have two, and so take 2 to 5 times fewer shuffles than
// one sum after the other; each is added in the same order.
template <int COUNT> DEVICE float sums_by_lane(float (&x)[COUNT]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int mask = 16, left = COUNT; mask; mask /= 2) {
    if (left > 1) {
      left /= 2;
      const bool upper = lane & mask;
#pragma unroll
      for (int i = 0; i < COUNT / 2; ++i)
        if (i < left) {
          const float mine = upper ? x[i + left] : x[i], given = upper ? x[i] : x[i + left];
          x[i] = mine + __shfl_xor_sync(0xFFFFFFFFu, given, mask);
        }
    } else {
      x[0] += __shfl_xor_sync(0xFFFFFFFFu, x[0], mask);
    }
  }
  return x[0];
}

// partial [rows, BATCH, chunks], of `outputs` outputs in all; inputs [BATCH, STRIDE].
template <int INPUTS, int OUTPUTS, int STRIDE, bool STAGED>
DEVICE void multiply(float *partial, const Weight *weights, int rows, const float *inputs) {
  constexpr int CHUNKS = chunks(INPUTS), GROUPS = WARPS > CHUNKS ? WARPS / CHUNKS : 1;
  // Rows whose weights are asked for before the first of them is needed.
  constexpr int ITEMS = power_of_two(BATCH), NEEDED = power_of_two((most_rows(OUTPUTS) + GROUPS - 1) / GROUPS);
  constexpr int AT_ONCE = NEEDED * ITEMS <= 4 ? NEEDED : ITEMS < 4 ? 4 / ITEMS : 1;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
  for (int part = warp; part < CHUNKS * GROUPS; part += WARPS) {
    const int chunk = part % CHUNKS, first = chunk * CHUNK + lane * 8;
    const bool inside = first < INPUTS;
    float taken[BATCH][8] = {};
#pragma unroll
    for (int item = 0; item < BATCH; ++item)
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (inside) taken[item][i] = inputs[item * STRIDE + first + i];
#pragma unroll 1
    for (int row = part / CHUNKS; row < rows; row += AT_ONCE * GROUPS) {
      // Beyond the last row the last one again, whose sums are not kept.
      float sums[AT_ONCE * ITEMS] = {};
#pragma unroll
      for (int next = 0; next < AT_ONCE; ++next) {
        const int here = min(row + next * GROUPS, rows - 1);
        float weight[8] = {};
        if (inside) load_eight<STAGED>(weight, weights + (long long)here * INPUTS + first);
#pragma unroll
        for (int item = 0; item < BATCH; ++item)
#pragma unroll
          for (int i = 0; i < 8; ++i)
            sums[next * ITEMS + item] = fmaf(weight[i], taken[item][i], sums[next * ITEMS + item]);
      }
      const float sum = sums_by_lane(sums);
      constexpr int LANES = 32 / (AT_ONCE * ITEMS);
      const int item = lane / LANES % ITEMS, here = row + lane / LANES / ITEMS * GROUPS;
      if (lane % LANES == 0 && item < BATCH && here < rows) partial[(here * BATCH + item) * CHUNKS + chunk] = sum;
    }
  }
}

// After a meeting of the block: use(item, row, sum), each by one thread, the same for the same item and row.
template <int INPUTS, class Use> DEVICE void add_up(const float *partial, int rows, Use use) {
  constexpr int CHUNKS = chunks(INPUTS);
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * BATCH; i += THREADS) {
    float sum = 0;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) sum += partial[i * CHUNKS + chunk];
    use(i % BATCH, i / BATCH, sum);
  }
}
