// Many decode steps in one launch: one block per multiprocessor, which stays.
//
// Block b computes its share of the outputs of every product: queries, keys and values; the projection of attention;
// up; down; logits. Between products it waits for the numbers of all blocks (exchange.cuh), five times a layer and
// twice a step. Its share of the next layer's weights comes into shared memory meanwhile, by the copy engine, to one
// place for each of the four matrices, which is filled again as soon as it has been used: so memory is read all the
// time, and a step takes the longer of two times, that of the weights' bytes and that of the exchanges. Matrices for
// which shared memory has no place, all where there is no copy engine, are asked for into the second-level cache.
//
// Why a word may be written again in the next layer: whoever writes it then has numbers of that layer's stage before
// from all blocks (each has a share of every stage), and a block computes these after it has read the word. Keys and
// values of earlier steps are seen since each step has fences on either side: before the logits, after the code.
//
// Bytes per step: every weight once, keys and values that are seen once; and from the second-level cache, each time
// that a block looks whether they are there, the words that it waits for (at width 1920 15 KB an exchange, 2 MB for 132
// blocks, beside 22 MB of a layer's weights).
#include <arguments.cuh>
#include <attention.cuh>
#include <products.cuh>
#include <room.cuh>
#include <sampling.cuh>

// Of the width a thread has columns threadIdx.x + i * THREADS, i < EACH.
constexpr int EACH = (WIDTH + THREADS - 1) / THREADS;
DEVICE int column(int i) { return int(threadIdx.x) + i * THREADS; }
// How many columns a warp has: all passes but the last are of whole warps.
DEVICE int columns_of(int warp) { return 32 * (EACH - 1) + min(max(WIDTH - (EACH - 1) * THREADS - 32 * warp, 0), 32); }
typedef float Columns[EACH];

struct Block {
  const Arguments &a;
  unsigned char *shared;
  Room &room;
  unsigned done = 0;  // layers; also which copy to its place a stage waits for

  // This block's outputs of a product.
  DEVICE int first(int outputs) { return first_of(outputs, blockIdx.x); }
  DEVICE int rows(int outputs) { return first_of(outputs, blockIdx.x + 1) - first(outputs); }

  DEVICE static const Matrix &matrix(const Layer &layer, int stage) {
    return stage == QKV ? layer.qkv : stage == PROJ ? layer.proj : stage == UP ? layer.up : layer.down;
  }
  DEVICE static int outputs_of(const Layer &layer, int stage) {
    return stage == QKV ? layer.projected * ATTN_WIDTH : most_outputs(stage);
  }
  DEVICE const Weight *share_of(const void *weight, int inputs, int outputs) {
    return static_cast<const Weight *>(weight) + (long long)first(outputs) * inputs;
  }

  // One thread: have the share of a layer's matrix copied to its place.
  template <int STAGE> DEVICE void fill(const Layer &layer) {
    if (staged(STAGE)) {
      const int outputs = outputs_of(layer, STAGE), inputs = inputs_of(STAGE);
      const unsigned bytes = rows(outputs) * inputs * unsigned(sizeof(Weight));
      const Weight *from = share_of(matrix(layer, STAGE).weight, inputs, outputs);
      copy_engine(shared + place(STAGE), from, bytes, room.counters + STAGE);
    }
  }

  // All threads: ask for a share that will be read from memory.
  DEVICE void expect(const void *weight, int inputs, int outputs) {
    auto *from = reinterpret_cast<const char *>(share_of(weight, inputs, outputs));
    const int bytes = rows(outputs) * inputs * int(sizeof(Weight));
#pragma unroll 1
    for (int i = threadIdx.x * 128; i < bytes; i += THREADS * 128) prefetch(from + i);
  }
  template <int STAGE> DEVICE void expect(const Layer &layer) {
    if (!staged(STAGE)) expect(matrix(layer, STAGE).weight, inputs_of(STAGE), outputs_of(layer, STAGE));
  }

  // The product of `room.inputs` with this block's rows of a layer's matrix, then use(item, output, value, place among
  // this block's). `next`: the layer for which the weights' place is filled again, or null.
  template <int STAGE, class Use> DEVICE void product(const Layer &layer, const Layer *next, Use use) {
    constexpr int INPUTS = inputs_of(STAGE), OUTPUTS = most_outputs(STAGE);
    const Matrix &m = matrix(layer, STAGE);
    const int outputs = outputs_of(layer, STAGE), from = first(outputs), count = rows(outputs);
    // Of what this thread adds up first; asked for before it must wait.
    const int own = from + min(int(threadIdx.x) / BATCH, count - 1);
    const float bias = m.bias[own], scale = m.scale ? m.scale[own] : 1;
    const Weight *weights = share_of(m.weight, INPUTS, outputs);
    if (staged(STAGE)) {
      for (unsigned polls = 0; !copied(room.counters + STAGE, done); ++polls) still_waiting(polls);
      weights = reinterpret_cast<const Weight *>(shared + place(STAGE));
    }
    multiply<INPUTS, OUTPUTS, STRIDE, staged(STAGE)>(room.partial, weights, count, room.inputs);
    __syncthreads();
    // A thread of the last warp: the first ones have sums to add up.
    if (next && threadIdx.x == THREADS - 1) fill<STAGE>(*next);
    add_up<INPUTS>(room.partial, count, [&](int item, int row, float sum) {
      const bool here = from + row == own;
      const float y = fmaf(sum, here ? scale : m.scale ? m.scale[from + row] : 1, here ? bias : m.bias[from + row]);
      use(item, from + row, y, row * BATCH + item);
    });
  }

  DEVICE void take_vector(Columns &out, const float *from) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) out[i] = column(i) < WIDTH ? from[column(i)] : 0;
  }

  struct Norm {
    Columns weight, bias;
  };

  // Before the numbers that it is for are there, unless a thread has no registers for both.
  template <bool BEFORE> DEVICE void take(Norm &norm, const float *weight, const float *bias) {
    if (BEFORE == (EACH * (BATCH + 2) <= 24)) {
      take_vector(norm.weight, weight);
      take_vector(norm.bias, bias);
    }
  }

  // `x` normalized over the width (Ba et al. 2016) to `room.inputs`.
  DEVICE void normalize(const Columns (&x)[BATCH], const Norm &norm) {
    Moments(&met)[BATCH][WARPS] = room.moments;
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int item = 0; item < BATCH; ++item) {
      float sum = 0, squares = 0;
#pragma unroll
      for (int i = 0; i < EACH; ++i) sum += x[item][i];
      const float mean = warp_sum(sum) / max(columns_of(warp), 1);
#pragma unroll
      for (int i = 0; i < EACH; ++i)
        if (column(i) < WIDTH) squares = fmaf(x[item][i] - mean, x[item][i] - mean, squares);
      squares = warp_sum(squares);
      if (threadIdx.x % 32 == 0) met[item][warp] = {mean, squares};
    }
    __syncthreads();
#pragma unroll
    for (int item = 0; item < BATCH; ++item) {
      float mean = 0, squares = 0;
#pragma unroll
      for (int i = 0; i < WARPS; ++i) mean = fmaf(met[item][i].mean, columns_of(i) / float(WIDTH), mean);
#pragma unroll
      for (int i = 0; i < WARPS; ++i) {
        const float off = met[item][i].mean - mean;
        squares += fmaf(off * off, columns_of(i), met[item][i].squares);
      }
      const float spread = 1 / sqrtf(squares / WIDTH + 1e-5f);
#pragma unroll
      for (int i = 0; i < EACH; ++i)
        if (column(i) < WIDTH)
          room.inputs[item * STRIDE + column(i)] = fmaf((x[item][i] - mean) * spread, norm.weight[i], norm.bias[i]);
    }
    __syncthreads();
  }

  // The width's columns of all items, from the words of all blocks.
  DEVICE void receive(Columns (&x)[BATCH], const Word *words, unsigned tag) {
    float got[BATCH * EACH];
    listen(got, tag, [&](int i) { return words + i / EACH * WIDTH + min(column(i % EACH), WIDTH - 1); });
#pragma unroll
    for (int i = 0; i < BATCH * EACH; ++i) x[i / EACH][i % EACH] = column(i % EACH) < WIDTH ? got[i] : 0;
  }

  // What the codes drawn last become at position `pos`, in the order in which the other decoders add.
  DEVICE void embed(Columns (&x)[BATCH], int pos, unsigned tag) {
    auto *tokens = static_cast<const Stored *>(a.token_embedding);
    auto *places = static_cast<const Stored *>(a.pos_embedding) + (long long)pos * WIDTH;
    auto *cond = static_cast<const Stored *>(a.frame_cond);
    Columns at_place, conds[BATCH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) at_place[i] = column(i) < WIDTH ? single(places[column(i)]) : 0;
#pragma unroll
    for (int item = 0; item < BATCH; ++item)
#pragma unroll
      for (int i = 0; i < EACH; ++i)
        conds[item][i] =
            cond && column(i) < WIDTH ? single(cond[((long long)item * CONTEXT + pos) * WIDTH + column(i)]) : 0;
    float drawn[BATCH];
    listen(drawn, tag, [&](int item) { return a.drawn + item; });
#pragma unroll
    for (int item = 0; item < BATCH; ++item)
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        const long long row = __float_as_int(drawn[item]) * (long long)WIDTH;
        const float token = column(i) < WIDTH ? single(tokens[row + column(i)]) : 0;
        x[item][i] = token + at_place[i] + conds[item][i];
      }
  }

  // A layer's description, a word by each of the first threads: read from memory, and kept in shared memory.
  static constexpr int DESCRIPTION = sizeof(Layer) / sizeof(Word);
  static_assert(DESCRIPTION <= THREADS, "");
  DEVICE static Word description(const Layer *from) {
    return reinterpret_cast<const Word *>(from)[min(int(threadIdx.x), DESCRIPTION - 1)];
  }
  DEVICE static void keep(Layer &to, Word word) {
    if (threadIdx.x < DESCRIPTION) reinterpret_cast<Word *>(&to)[threadIdx.x] = word;
  }

  // Layer `at` of the step for position `pos`; x: the first one's input.
  DEVICE void layer(int at, int pos, unsigned tag, bool last_step, Columns (&x)[BATCH]) {
    const bool last_layer = at == a.depth - 1;
    const Layer &layer = room.layers[done & 1];
    const Layer *next = last_layer && last_step ? nullptr : &room.layers[~done & 1];
    expect<QKV>(layer);
    prefetch_parts(layer, pos);
    if (last_layer) expect(a.head_weight, WIDTH, CODES);
    const Word following = description(a.layers + (last_layer ? 0 : at + 1));
    Norm norm;
    take<true>(norm, layer.norm_0_weight, layer.norm_0_bias);
    if (at) {
      receive(x, a.x_words, tag - 1);
    } else {
      const int from = first(WIDTH), count = rows(WIDTH);
#pragma unroll
      for (int i = 0; i < EACH; ++i)
#pragma unroll
        for (int item = 0; item < BATCH; ++item)
          if (column(i) >= from && column(i) < from + count) room.own_x[(column(i) - from) * BATCH + item] = x[item][i];
    }
    take<false>(norm, layer.norm_0_weight, layer.norm_0_bias);
    normalize(x, norm);
    // All threads have left the layer before, whose room this was.
    keep(room.layers[~done & 1], following);
    const int slot = seen_from(pos, layer).slot;
    product<QKV>(layer, next, [&](int item, int output, float y, int) {
      tell(a.qkv + item * 3 * ATTN_WIDTH + output, y, tag);
      if (output >= ATTN_WIDTH && slot >= 0) {
        const int within = output % ATTN_WIDTH;
        store(cached(layer, output / ATTN_WIDTH - 1, item, within / HEAD_DIM, slot) + within % HEAD_DIM, y);
      }
    });
    expect<PROJ>(layer);
    // After the code was heard, before keys and values of earlier steps are read; here blocks wait anyway.
    if (!at) fence();
    attend(a, layer, pos, tag, room.attention);
    put_together<STRIDE>(room.inputs, a, layer, pos, tag);
    __syncthreads();
    product<PROJ>(layer, next, [&](int item, int output, float y, int own) {
      const float h = room.own_x[own] + y;
      room.own_h[own] = h;
      tell(a.h + item * WIDTH + output, h, tag);
    });
    expect<UP>(layer);
    take<true>(norm, layer.norm_1_weight, layer.norm_1_bias);
    receive(x, a.h, tag);
    take<false>(norm, layer.norm_1_weight, layer.norm_1_bias);
    normalize(x, norm);
    product<UP>(layer, next, [&](int item, int output, float y, int) {
      tell(a.hidden + item * MLP_WIDTH + output, y / (1 + expf(-1.702f * y)), tag);
    });
    expect<DOWN>(layer);
    receive_hidden(tag);
    product<DOWN>(layer, next, [&](int item, int output, float y, int own) {
      const float before = room.own_x[own];
      room.own_x[own] = before + a.res_scale * (room.own_h[own] - before + y);
      tell(a.x_words + item * WIDTH + output, room.own_x[own], tag);
    });
    ++done;
  }

  // What the layer's MLP has in the middle, to `room.inputs`.
  DEVICE void receive_hidden(unsigned tag) {
    constexpr int OF_THREAD = (MLP_WIDTH + THREADS - 1) / THREADS;
    float got[BATCH * OF_THREAD];
    listen(got, tag, [&](int i) {
      return a.hidden + i / OF_THREAD * MLP_WIDTH + min(column(i % OF_THREAD), MLP_WIDTH - 1);
    });
#pragma unroll
    for (int i = 0; i < BATCH * OF_THREAD; ++i)
      if (const int at = column(i % OF_THREAD); at < MLP_WIDTH) room.inputs[i / OF_THREAD * STRIDE + at] = got[i];
    __syncthreads();
  }

  DEVICE void head(int pos, unsigned tag) {
    // What this step has cached is there before its logits are; here blocks wait anyway.
    fence();
    Columns x[BATCH];
    receive(x, a.x_words, tag - 1);
    auto *cond = static_cast<const Stored *>(a.head_cond);
#pragma unroll
    for (int item = 0; item < BATCH; ++item)
#pragma unroll
      for (int i = 0; i < EACH; ++i)
        if (column(i) < WIDTH) {
          if (cond) x[item][i] += single(cond[((long long)item * CONTEXT + pos) * WIDTH + column(i)]);
          room.inputs[item * STRIDE + column(i)] = x[item][i];
        }
    __syncthreads();
    const int from = first(CODES), count = rows(CODES);
    const Weight *weights = share_of(a.head_weight, WIDTH, CODES);
    multiply<WIDTH, CODES, STRIDE, false>(room.partial, weights, count, room.inputs);
    __syncthreads();
    add_up<WIDTH>(room.partial, count, [&](int item, int row, float sum) {
      if (a.head_scale) sum *= a.head_scale[from + row];
      tell(a.logits + item * CODES + from + row, sum, tag);
    });
  }

  // The code of an item, one by each of the first blocks.
  DEVICE void draw(int pos, unsigned tag) {
    if (const int item = blockIdx.x; item < BATCH) {
      Sampler sampler{room.meeting};
      sampler.draw_noise(a, item, pos);
      listen(sampler.logits, tag, [&](int i) { return a.logits + item * CODES + min(code_of(i), CODES - 1); });
      fence();
      const int code = min(sampler.draw(a), CODES - 1);
      if (threadIdx.x == 0) {
        a.codes[(long long)item * CONTEXT + pos] = code;
        fence();
        tell(a.drawn + item, __int_as_float(code), tag);
      }
    }
  }

  DEVICE void run() {
    keep(room.layers[0], description(a.layers));
    if (threadIdx.x == THREADS - 1) {
      for (int stage = 0; stage < STAGES; ++stage) start_counter(room.counters + stage);
      const Layer &layer = a.layers[0];
      fill<QKV>(layer);
      fill<PROJ>(layer);
      fill<UP>(layer);
      fill<DOWN>(layer);
    }
    __syncthreads();
    Columns x[BATCH];
#pragma unroll
    for (int item = 0; item < BATCH; ++item) take_vector(x[item], a.x + item * WIDTH);
#pragma unroll 1
    for (int step = 0; step < a.steps; ++step) {
      const int pos = a.start + step;
      const unsigned tag = a.tag + step * (a.depth + 1);
      if (step) embed(x, pos, tag - 1);
#pragma unroll 1
      for (int at = 0; at < a.depth; ++at) layer(at, pos, tag + at, step == a.steps - 1, x);
      head(pos, tag + a.depth);
      draw(pos, tag + a.depth);
    }
    // For the launch that goes on from here.
    if (blockIdx.x == 0 && a.start + a.steps < CONTEXT) {
      embed(x, a.start + a.steps, a.tag + a.steps * (a.depth + 1) - 1);
#pragma unroll
      for (int item = 0; item < BATCH; ++item)
#pragma unroll
        for (int i = 0; i < EACH; ++i)
          if (column(i) < WIDTH) a.x[item * WIDTH + column(i)] = x[item][i];
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) decode_steps(const Arguments arguments) {
  SHARED_ROOM(shared);
  Block{arguments, shared, *reinterpret_cast<Room *>(shared)}.run();
}
