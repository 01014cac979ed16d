// What touches the hardware, in PTX where CUDA C++ has no words for it. The tests have a twin of this file that runs on
// a CPU (tests/kernels/cpu_device.cuh): the others include it as <device.cuh> and say nothing of a GPU themselves.
#pragma once

#define DEVICE __device__ __forceinline__
// All of it belongs to the one block that a multiprocessor runs.
#define SHARED_ROOM(name) extern __shared__ __align__(128) unsigned char name[]

typedef unsigned long long Word;

// Halves of a word are never seen apart, and other multiprocessors see it without anything being flushed.
DEVICE Word load_word(const Word *from) {
  Word word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  return word;
}

DEVICE void store_word(Word *to, Word word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

// Together with words told and heard: what was written before the one is seen by who heard the other.
DEVICE void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// A block that waits so long (seconds) waits for ever: an error is better than a hanging GPU.
DEVICE void still_waiting(unsigned polls) {
  if (polls > 1u << 24) __trap();
}

DEVICE float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

DEVICE unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// Of what nobody writes while a kernel runs, and no other block reads: not kept in the first-level cache.
DEVICE uint4 stream_16(const void *from) {
  uint4 got;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(got.x), "=r"(got.y), "=r"(got.z), "=r"(got.w)
      : "l"(from));
  return got;
}

DEVICE uint2 stream_8(const void *from) {
  uint2 got;
  asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(got.x), "=r"(got.y) : "l"(from));
  return got;
}

// Of memory that other multiprocessors write, past the first-level cache.
DEVICE float shared_by_all(const float *from) {
  float got;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(got) : "l"(from) : "memory");
  return got;
}

DEVICE unsigned shared_by_all(const unsigned *from) {
  unsigned got;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(got) : "l"(from) : "memory");
  return got;
}

DEVICE unsigned short shared_by_all(const unsigned short *from) {
  unsigned short got;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(got) : "l"(from) : "memory");
  return got;
}

// Into the second-level cache.
DEVICE void prefetch(const void *from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// From sm_90 on the copy engine fills shared memory on its own, and an arrival counter there tells when it has.
#if __CUDA_ARCH__ >= 900
#define COPY_ENGINE 1

DEVICE unsigned shared_address(const void *of) { return (unsigned)__cvta_generic_to_shared(of); }

DEVICE void start_counter(Word *counter) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(counter)) : "memory");
  // The copy engine must see it, too.
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// `bytes`: whole multiples of 16, as are both addresses.
DEVICE void copy_engine(void *to, const void *from, unsigned bytes, Word *counter) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(counter)), "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(counter))
               : "memory");
}

// Whether the copy that is the counter's `count`th, from 0 on, is complete.
DEVICE bool copied(Word *counter, unsigned count) {
  unsigned done;
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(shared_address(counter)), "r"(count & 1)
      : "memory");
  return done;
}
#else
#define COPY_ENGINE 0
DEVICE void start_counter(Word *) {}
DEVICE void copy_engine(void *, const void *, unsigned, Word *) {}
DEVICE bool copied(Word *, unsigned) { return true; }
#endif
