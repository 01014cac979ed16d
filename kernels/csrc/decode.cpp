// Decodes many positions of a window in one call: embedding, all layers, head and sampling, on a team of threads; and takes
// in a window's prompt, many positions at a time.
//
// The weights of a step are read once, each thread its own contiguous panels, and threads meet as few times a layer as the
// division of its work allows. All sums run in an order that depends on neither batch nor threads nor the width of the
// registers, and are fused where the source says so (simd.inc): one seed gives one result, on every processor.

#include "decode.h"

#include <float.h>
#include <math.h>

#include <algorithm>
#include <functional>
#include <new>
#include <system_error>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "threads.h"

// Weights, in bytes, that each thread may read for items of its own, for each of the items and for eight at least: those of
// larger networks come from memory, which is better read once.
static int64_t weights_alone = 2 << 20;

// TILE: rows of activations that one pass over a panel serves, as many as the registers hold.
// ISA: the compiler's own macros do not follow the pragmas below.
#define ISA 0
namespace portable {
constexpr int TILE = 2;
#include "every.inc"
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__)
#define FASTJUKEBOX_X86 1

#define DO_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define BEGIN_TARGET(sets) DO_PRAGMA(clang attribute push(__attribute__((target(sets))), apply_to = function))
#define END_TARGET DO_PRAGMA(clang attribute pop)
#else
#define BEGIN_TARGET(sets) DO_PRAGMA(GCC push_options) DO_PRAGMA(GCC target(sets))
#define END_TARGET DO_PRAGMA(GCC pop_options)
#endif
#if !defined(__clang__) && __GNUC__ >= 10
#define WHOLE_VECTORS ",prefer-vector-width=512"
#else
#define WHOLE_VECTORS
#endif

// Every CPU with AVX2 has F16C.
BEGIN_TARGET("avx2,fma,f16c")
namespace avx2 {
constexpr int TILE = 3;
#undef INLINE
#undef ISA
#define ISA 1
#include "every.inc"
}  // namespace avx2
END_TARGET

BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c" WHOLE_VECTORS)
namespace avx512 {
constexpr int TILE = 8;
#undef INLINE
#undef ISA
#define ISA 2
#include "every.inc"
}  // namespace avx512
END_TARGET

BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c" WHOLE_VECTORS)
namespace avx512_vnni {
constexpr int TILE = 8;
#undef INLINE
#undef ISA
#define ISA 3
#include "every.inc"
}  // namespace avx512_vnni
END_TARGET
#endif

static int isa_limit = 3;

static int instruction_set() {
#ifdef FASTJUKEBOX_X86
  if (isa_limit >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return isa_limit >= 3 && __builtin_cpu_supports("avx512vnni") ? 3 : 2;
  if (isa_limit >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

// Calls the function of this CPU's instruction set, `functions` being in the order of ISA.
template <typename Function, typename... Arguments>
static int call(const Function *functions, const Arguments &...arguments) {
  try {
    functions[instruction_set()](arguments...);
  } catch (const std::system_error &) {
    return FASTJUKEBOX_NO_THREADS;
  } catch (const std::bad_alloc &) {
    return FASTJUKEBOX_NO_MEMORY;
  }
  return 0;
}

#ifdef FASTJUKEBOX_X86
#define EVERY_SET(name) {portable::name, avx2::name, avx512::name, avx512_vnni::name}
#else
#define EVERY_SET(name) {portable::name}
#endif

extern "C" int fastjukebox_decode(const Model *model, const Task *task, int32_t start, int32_t stop, int32_t threads) {
  using Positions = void (*)(const Model &, const Task &, int, int, int);
  static const Positions functions[] = EVERY_SET(run);
  return call(functions, *model, *task, start, stop, threads);
}

extern "C" int fastjukebox_prefill(const Model *model, const Task *task, int32_t start, int32_t stop, int32_t decode_from,
                                   int32_t threads) {
  using Prefill = void (*)(const Model &, const Task &, int, int, int, int);
  static const Prefill functions[] = EVERY_SET(prefill);
  return call(functions, *model, *task, start, stop, decode_from, threads);
}

extern "C" int fastjukebox_speculate(const Model *model, const Task *task, const Model *draft, const Task *draft_task,
                                     int32_t *positions, int32_t stop, int32_t length, int32_t checks, int32_t threads,
                                     int64_t *counts) {
  using Speculate =
      void (*)(const Model &, const Task &, const Model &, const Task &, int32_t *, int, int, int, int, int64_t *);
  static const Speculate functions[] = EVERY_SET(speculate);
  return call(functions, *model, *task, *draft, *draft_task, positions, stop, length, checks, threads, counts);
}

extern "C" int fastjukebox_condition(const Conditioner *conditioner, const int64_t *codes, int32_t count, float *out,
                                     float *room, int32_t step, int32_t threads) {
  using Condition = void (*)(const Conditioner &, const int64_t *, int, float *, float *, int, int);
  static const Condition functions[] = EVERY_SET(condition);
  return call(functions, *conditioner, codes, count, out, room, step, threads);
}

extern "C" int64_t fastjukebox_condition_room(const Conditioner *conditioner, int32_t count) {
  return portable::Kept(*conditioner, count, nullptr).floats;
}

extern "C" const char *fastjukebox_isa(void) {
  static const char *const names[] = {"portable", "avx2", "avx512", "avx512-vnni"};
  return names[instruction_set()];
}

extern "C" void fastjukebox_limit(int32_t isa) { isa_limit = isa; }

extern "C" int64_t fastjukebox_weights_alone(int64_t size) {
  std::swap(size, weights_alone);
  return size;
}

#ifndef FASTJUKEBOX_SOURCES
#define FASTJUKEBOX_SOURCES ""
#endif
extern "C" const char *fastjukebox_sources(void) { return FASTJUKEBOX_SOURCES; }

extern "C" void fastjukebox_sizes(int32_t *sizes) {
  sizes[0] = sizeof(Model);
  sizes[1] = sizeof(Layer);
  sizes[2] = sizeof(Task);
  sizes[3] = sizeof(Convolution);
  sizes[4] = sizeof(Conditioner);
}
