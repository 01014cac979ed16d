// The C interface of the native decoder. Mirrored field by field in kernels/native_library.py.
// All pointers stay owned by the caller; FP32 unless said otherwise; row-major.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// y = x W + bias. W [in, out] is stored in panels of PANEL output columns: [out / PANEL][in][PANEL], zero-padded; int8 with
// two inputs side by side: [out / PANEL][in / 2][PANEL][2]. x is then rounded to whole numbers
// of at most 2^14 times a step, so that sums are exact.
enum { PANEL = 16 };

enum Stored { FP32 = 0, FP16 = 1, INT8 = 2 };

typedef struct {
  const void *panels;  // in the type that `stored` says
  const float *scale;  // [out / PANEL * PANEL] per output column, or null
  const float *bias;   // [out / PANEL * PANEL], or null
  int32_t in, out, stored;
} Matrix;

// LYRICS sees the first `slots` positions; CROSS sees slots that the caller has filled, and projects to queries alone.
enum Pattern { ROW = 0, COLUMN = 1, PREVIOUS_ROW = 2, DENSE = 3, LYRICS = 4, CROSS = 5 };

typedef struct {
  const float *ln_0_weight, *ln_0_bias, *ln_1_weight, *ln_1_bias;  // [width]
  // qkv head by head: a head's query, keys, values (of CROSS its query), then the next head's.
  Matrix qkv, proj, up, down;
  // FP32 or FP16, as `cached` says.
  void *keys;    // [lanes, heads, slots in blocks of 16, head_dim, 16]: the same value of 16 keys side by side
  void *values;  // [lanes, heads, slots, head_dim]
  int32_t pattern, slots, cached;
} Layer;

typedef struct {
  // cond_again: whether the frame condition is added once more before the head.
  int32_t depth, width, attn_width, heads, mlp_width, codebook_size, context_len, row_len, cond_again;
  float res_scale;
  const float *token_embedding;  // [codebook_size and more, width]: a prompt may hold what is no code
  const float *pos_embedding;    // [context_len, width]
  const float *start_token;      // [width]
  Matrix head;                   // no bias
  const Layer *layers;           // [depth]
} Model;

typedef struct {
  int32_t batch;
  int64_t *codes;           // [batch, context_len], read and written
  const float *frame_cond;  // [batch, context_len, width], or null
  const float *start_cond;  // [batch, width], or null
  const int64_t *items;     // [batch]
  uint64_t seed;
  int64_t offset;  // position in the song of the window's first code
  int32_t level, top_k;
  float temperature, top_p;
} Task;

// y[t] = bias + the sum over taps of W[tap] x[t + first + tap * dilation]; x is zero beyond its ends. W [taps * in, out]
// in panels, FP32.
typedef struct {
  const float *panels, *bias;
  int32_t in, out, taps, dilation, first;
} Convolution;

// The network that turns the upper level's codes into a frame condition.
typedef struct {
  int32_t width, inner, hidden, stages, depth, stride;
  float res_scale;
  const float *embedding;             // [codebook_size, width]
  const float *ln_weight, *ln_bias;   // [width]
  // From the embedding to `inner`; then for each stage the two of each of `depth` residual blocks, and one for each of
  // the `stride` outputs that a row turns into.
  const Convolution *convolutions;
} Conditioner;

// What decoding, prefill and conditions return where the system has no room for so many threads, or for their buffers; nothing has
// been done then. Else they return 0.
enum { FASTJUKEBOX_NO_THREADS = 1, FASTJUKEBOX_NO_MEMORY = 2 };

// Writes codes start ... stop - 1 of the task. The cache must hold every earlier position.
int fastjukebox_decode(const Model *model, const Task *task, int32_t start, int32_t stop, int32_t threads);

// Puts positions start ... stop - 1 of the task into the cache; each takes in the code before it. The cache must hold
// every earlier position. What no position from `decode_from` on needs, or from `stop` on if that is later, may be left out.
int fastjukebox_prefill(const Model *model, const Task *task, int32_t start, int32_t stop, int32_t decode_from,
                        int32_t threads);

// The codes that fastjukebox_decode writes, by speculative decoding: the draft model guesses up to `length` codes of each
// item one by one with the noise that the task draws by, the model then draws its own for all of them at once, and those up
// to the first wrong guess are kept. Each item goes on from where positions[batch] says, which is moved on, to `stop`, in
// `checks` checks at most. Both caches must hold every earlier position; `draft_task` has the same codes, length of the
// window and numbers as `task`, with conditions of its own. counts[3]: how many of the codes written were guessed, how
// often guesses were checked, of each item for itself, and how many of them.
int fastjukebox_speculate(const Model *model, const Task *task, const Model *draft, const Task *draft_task,
                          int32_t *positions, int32_t stop, int32_t length, int32_t checks, int32_t threads,
                          int64_t *counts);

// One of the 1 + stages * (depth + 1) steps that write out[count * stride^stages, width] from codes[count]: the first
// convolution, each residual block and each stage's end, so that a caller may stop between two of them. `room` keeps what
// is there after a step: as many floats as fastjukebox_condition_room says, zeros before the first.
int fastjukebox_condition(const Conditioner *conditioner, const int64_t *codes, int32_t count, float *out, float *room,
                          int32_t step, int32_t threads);
int64_t fastjukebox_condition_room(const Conditioner *conditioner, int32_t count);

// The instruction set in use: "avx512-vnni", "avx512", "avx2" or "portable".
const char *fastjukebox_isa(void);

// For tests: use no better instruction set than `isa`, 0 portable, 1 avx2, 2 avx512, 3 avx512-vnni.
void fastjukebox_limit(int32_t isa);

// For tests: up to what size of weights threads take items of their own, in bytes an item (decode.cpp). Returns the last one.
int64_t fastjukebox_weights_alone(int64_t size);

// The hash of the sources that it was compiled from (native_library.py), "" where the build gave none.
const char *fastjukebox_sources(void);

// sizeof(Model), sizeof(Layer), sizeof(Task), sizeof(Convolution), sizeof(Conditioner), for the binding to check its mirror.
void fastjukebox_sizes(int32_t *sizes);

#ifdef __cplusplus
}
#endif
