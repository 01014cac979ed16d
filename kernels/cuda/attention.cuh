// Attention of one position over what its pattern lets it see, cut into parts of some keys for as many blocks; who
// needs the result puts the parts together (kernels/reference.py: cache_attention, project_attention).
#pragma once
#include <arguments.cuh>
#include <exchange.cuh>
#include <numbers.cuh>

struct Seen {
  int first, count;  // slots
  int own;           // index among them of the position itself, -1: it is none of them
  int slot;          // where the position is kept, -1: nowhere
  DEVICE int parts(int part) const { return (count + part - 1) / part; }
};

DEVICE Seen seen_from(int pos, const Layer &layer) {
  const int row = pos / ROW_LEN, column = pos % ROW_LEN;
  if (layer.pattern == ROW) return {0, column + 1, column, column};
  if (layer.pattern == PREVIOUS_ROW)
    return {(row + 1) % 2 * ROW_LEN, row ? ROW_LEN : 0, -1, row % 2 * ROW_LEN + column};
  if (layer.pattern == COLUMN) {
    const int first = column * (layer.slots / ROW_LEN);
    return {first, row + 1, row, first + row};
  }
  if (layer.pattern == CROSS) return {0, layer.slots, -1, -1};
  const bool kept = pos < layer.slots;
  return {0, min(pos + 1, layer.slots), kept ? pos : -1, kept ? pos : -1};
}

// [2, BATCH, HEADS, slots, HEAD_DIM]
DEVICE Stored *cached(const Layer &layer, int of_values, int item, int head, int slot) {
  const long long lane = (long long)(of_values * BATCH + item) * HEADS + head;
  return static_cast<Stored *>(layer.kv) + (lane * layer.slots + slot) * HEAD_DIM;
}

// One part's words: a sum for each of HEAD_DIM, then the peak and the mass.
constexpr int PART_WORDS = HEAD_DIM + 2;
DEVICE Word *part_words(const Arguments &a, int item, int part, int head) {
  return a.parts + ((long long)(item * MOST_PARTS + part) * HEADS + head) * PART_WORDS;
}

// Place `i` of the `index`th from `first` on; an address takes one instruction so.
DEVICE const Stored *row(const Stored *first, unsigned index, int i) {
  return reinterpret_cast<const Stored *>(reinterpret_cast<const char *>(first + i) +
                                          (unsigned long long)index * (HEAD_DIM * sizeof(Stored)));
}

// Of values each thread reads what it has written; all else is written anew after a meeting.
struct AttentionRoom {
  float query[HEAD_DIM], key[HEAD_DIM], value[HEAD_DIM];
  float scores[2][WARPS];
};

// This block's parts, from the words of the layer's queries, keys and values: a key for each warp at a time. The first
// ones are asked for before the query is there. Running peaks and sums are those of Milakov and Gimelshein (2018).
DEVICE void attend(const Arguments &a, const Layer &layer, int pos, unsigned tag, AttentionRoom &room) {
  // Of a thread: pairs of places of a key, by lanes, and places of the result, by threads.
  constexpr int BY_LANE = (HEAD_DIM + 63) / 64, BY_THREAD = (HEAD_DIM + THREADS - 1) / THREADS;
  const Seen seen = seen_from(pos, layer);
  const int parts = seen.parts(layer.part), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  auto place = [](int i) { return int(threadIdx.x) + i * THREADS; };
#pragma unroll 1
  for (int unit = blockIdx.x; unit < parts * HEADS * BATCH; unit += GRID) {
    const int head = unit % HEADS, part = unit / HEADS % parts, item = unit / HEADS / parts;
    const int start = part * layer.part, count = min(layer.part, seen.count - start);
    const int own = seen.own >= 0 ? seen.own - start : -1;
    const Word *words = a.qkv + (long long)item * 3 * ATTN_WIDTH + head * HEAD_DIM;
    const Stored *keys = cached(layer, 0, item, head, seen.first + start);
    const Stored *values = cached(layer, 1, item, head, seen.first + start);
    float sums[BY_THREAD] = {}, peak = minus_infinity(), mass = 0;
#pragma unroll 1
    for (int first = 0; first < count; first += WARPS) {
      // Beyond the last key the last one again, with a weight of zero.
      auto at = [&](int j) { return min(first + j, count - 1); };
      Pair<Stored> key[BY_LANE];
      Stored value[BY_THREAD][WARPS];
#pragma unroll
      for (int i = 0; i < BY_LANE; ++i)
        key[i] = current_pair(row(keys, at(warp), min(2 * lane + 64 * i, HEAD_DIM - 2)));
#pragma unroll
      for (int i = 0; i < BY_THREAD; ++i)
#pragma unroll
        for (int j = 0; j < WARPS; ++j) value[i][j] = current(row(values, at(j), min(place(i), HEAD_DIM - 1)));
      if (first == 0) {
        const bool with_own = own >= 0 && own < count;
        float got[3 * BY_THREAD];
        listen(got, tag, [&](int j) {
          return words + (with_own ? j % 3 * ATTN_WIDTH : 0) + min(place(j / 3), HEAD_DIM - 1);
        });
#pragma unroll
        for (int j = 0; j < 3 * BY_THREAD; j += 3)
          if (place(j / 3) < HEAD_DIM) {
            room.query[place(j / 3)] = got[j];
            room.key[place(j / 3)] = rounded(got[j + 1]);
            room.value[place(j / 3)] = rounded(got[j + 2]);
          }
        __syncthreads();
      }
      float score = 0;
#pragma unroll
      for (int i = 0; i < BY_LANE; ++i)
        if (const int here = 2 * lane + 64 * i; here < HEAD_DIM) {
          const bool is_own = at(warp) == own;
          score = fmaf(is_own ? room.key[here] : key[i].first(), room.query[here], score);
          score = fmaf(is_own ? room.key[here + 1] : key[i].second(), room.query[here + 1], score);
        }
      score = warp_sum(score);
      float *scores = room.scores[first / WARPS % 2];
      if (lane == 0) scores[warp] = first + warp < count ? score * SCORE_SCALE : minus_infinity();
      __syncthreads();
      // A lane has the score of a key, each warp all of them.
      score = lane < WARPS ? scores[lane] : minus_infinity();
      const float most = larger(peak, warp_max(score)), before = exp2f(peak - most);
      const float weight = exp2f(score - most);
      peak = most;
      mass = mass * before + warp_sum(weight);
#pragma unroll
      for (int i = 0; i < BY_THREAD; ++i) sums[i] *= before;
#pragma unroll
      for (int j = 0; j < WARPS; ++j) {
        const float of_key = __shfl_sync(0xFFFFFFFFu, weight, j);
#pragma unroll
        for (int i = 0; i < BY_THREAD; ++i) {
          const int here = min(place(i), HEAD_DIM - 1);
          sums[i] = fmaf(of_key, at(j) == own ? room.value[here] : single(value[i][j]), sums[i]);
        }
      }
    }
    Word *out = part_words(a, item, part, head);
#pragma unroll
    for (int i = 0; i < BY_THREAD; ++i)
      if (place(i) < HEAD_DIM) tell(out + place(i), sums[i], tag);
    if (threadIdx.x == 0) {
      tell(out + HEAD_DIM, peak, tag);
      tell(out + HEAD_DIM + 1, mass, tag);
    }
  }
}

// Ask for the keys and values of this block's parts before anything is known of the position.
DEVICE void prefetch_parts(const Layer &layer, int pos) {
  const Seen seen = seen_from(pos, layer);
  const int parts = seen.parts(layer.part);
#pragma unroll 1
  for (int unit = blockIdx.x; unit < parts * HEADS * BATCH; unit += GRID) {
    const int head = unit % HEADS, part = unit / HEADS % parts, item = unit / HEADS / parts;
    const int start = part * layer.part, bytes = min(layer.part, seen.count - start) * HEAD_DIM * int(sizeof(Stored));
#pragma unroll 1
    for (int of_values = 0; of_values < 2; ++of_values) {
      auto *from = reinterpret_cast<const char *>(cached(layer, of_values, item, head, seen.first + start));
#pragma unroll 1
      for (int i = threadIdx.x * 128; i < bytes; i += THREADS * 128) prefetch(from + i);
    }
  }
}

// attended [BATCH, STRIDE]: the parts of all blocks put together; attention over nothing is zero.
template <int STRIDE>
DEVICE void put_together(float *attended, const Arguments &a, const Layer &layer, int pos, unsigned tag) {
  const int parts = seen_from(pos, layer).parts(layer.part);
#pragma unroll 1
  for (int i = threadIdx.x; i < BATCH * ATTN_WIDTH; i += THREADS) {
    const int item = i / ATTN_WIDTH, head = i % ATTN_WIDTH / HEAD_DIM, within = i % HEAD_DIM;
    float peak = minus_infinity(), mass = 0, sum = 0;
#pragma unroll 1
    for (int first = 0; first < parts; first += 4) {
      // Of up to four parts at a time: sum, peak and mass.
      float got[12];
      listen(got, tag, [&](int j) {
        const int part = first + j / 3, which = j % 3 ? HEAD_DIM - 1 + j % 3 : within;
        return part_words(a, item, part < parts ? part : first, head) + which;
      });
      float most = peak;
#pragma unroll
      for (int j = 0; j < 12; j += 3)
        if (first + j / 3 < parts) most = larger(most, got[j + 1]);
      if (first) {
        const float before = exp2f(peak - most);
        sum *= before;
        mass *= before;
      }
#pragma unroll
      for (int j = 0; j < 12; j += 3)
        if (first + j / 3 < parts) {
          const float now = exp2f(got[j + 1] - most);
          sum = fmaf(got[j], now, sum);
          mass = fmaf(got[j + 2], now, mass);
        }
      peak = most;
    }
    attended[item * STRIDE + i % ATTN_WIDTH] = mass > 0 ? sum / mass : 0;
  }
}
