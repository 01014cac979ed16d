// What a block keeps in shared memory: numbers on their way, and as many of the layer's matrices as there is place for.
#pragma once
#include <arguments.cuh>
#include <attention.cuh>
#include <products.cuh>

constexpr int larger_of(int a, int b) { return a > b ? a : b; }
constexpr int round_up(int bytes) { return (bytes + 127) / 128 * 128; }

enum Stage { QKV, PROJ, UP, DOWN, STAGES };
constexpr int inputs_of(int stage) { return stage == PROJ ? ATTN_WIDTH : stage == DOWN ? MLP_WIDTH : WIDTH; }
constexpr int most_outputs(int stage) { return stage == QKV ? 3 * ATTN_WIDTH : stage == UP ? MLP_WIDTH : WIDTH; }

// From one item's inputs of a product to the next one's: they are not to meet in a bank.
constexpr int STRIDE = larger_of(larger_of(WIDTH, MLP_WIDTH), ATTN_WIDTH) + 4;
constexpr int partials(int inputs, int outputs) { return chunks(inputs) * most_rows(outputs) * BATCH; }
constexpr int most_partials() {
  int most = partials(WIDTH, CODES);
  for (int stage = 0; stage < STAGES; ++stage) most = larger_of(most, partials(inputs_of(stage), most_outputs(stage)));
  return most;
}

// Of the columns of a warp: their mean, and the sum of the squares of what they are off it. Put together as Chan et al.
// (1983) do, they are as exact as sums about the mean of all, with one meeting of the block instead of two.
struct Moments {
  float mean, squares;
};

struct Room {
  Meeting meeting;
  Word counters[STAGES];
  Layer layers[2];  // the current one, and the next
  AttentionRoom attention;
  Moments moments[BATCH][WARPS];
  float inputs[BATCH * STRIDE];
  float partial[most_partials()];
  float own_x[most_rows(WIDTH) * BATCH], own_h[most_rows(WIDTH) * BATCH];
};
constexpr int ROOM = round_up(sizeof(Room));
static_assert(ROOM <= SHARED_BYTES, "too many items for this GPU's shared memory");
// Each of the first blocks draws an item's codes.
static_assert(BATCH <= GRID, "too many items for so few blocks");

// Where a block's share of a matrix lies in shared memory: the largest matrices have a place first, then what fits.
constexpr int NOWHERE = -1;
constexpr int place(int wanted) {
  int at = ROOM;
  for (int stage : {UP, DOWN, QKV, PROJ}) {
    const int bytes = round_up(most_rows(most_outputs(stage)) * inputs_of(stage) * int(sizeof(Weight)));
    const bool fits = COPY_ENGINE && at + bytes <= SHARED_BYTES;
    if (stage == wanted) return fits ? at : NOWHERE;
    if (fits) at += bytes;
  }
  return NOWHERE;
}
constexpr bool staged(int stage) { return place(stage) != NOWHERE; }
