// Numbers as weights, keys and values are stored, read as FP32.
#pragma once
#include <device.cuh>

struct Half {
  unsigned short bits;
};
struct Bfloat16 {
  unsigned short bits;
};

DEVICE float single(float x) { return x; }
DEVICE float single(Half x) { return half_to_float(x.bits); }
DEVICE float single(Bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

DEVICE void store(float *to, float x) { *to = x; }
DEVICE void store(Half *to, float x) { to->bits = float_to_half(x); }
DEVICE void store(Bfloat16 *to, float x) {
  // To the nearest, of two the even one.
  unsigned bits = __float_as_uint(x);
  to->bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// Of embeddings, conditions, keys and values; of weights.
typedef STORED Stored;
typedef WEIGHT Weight;

DEVICE float rounded(float x) {
  Stored there;
  store(&there, x);
  return single(there);
}

// Two neighbours, read together where they are short: the first at a multiple of two.
template <class Short> struct Pair {
  unsigned bits;
  DEVICE float first() const { return single(Short{(unsigned short)(bits & 0xFFFF)}); }
  DEVICE float second() const { return single(Short{(unsigned short)(bits >> 16)}); }
};
template <> struct Pair<float> {
  float one, two;
  DEVICE float first() const { return one; }
  DEVICE float second() const { return two; }
};

// Of caches: what other blocks have written in earlier steps.
DEVICE Pair<float> current_pair(const float *from) { return {shared_by_all(from), shared_by_all(from + 1)}; }
template <class Short> DEVICE Pair<Short> current_pair(const Short *from) {
  return {shared_by_all(reinterpret_cast<const unsigned *>(from))};
}
DEVICE float current(const float *from) { return shared_by_all(from); }
DEVICE Half current(const Half *from) { return Half{shared_by_all(&from->bits)}; }
DEVICE Bfloat16 current(const Bfloat16 *from) { return Bfloat16{shared_by_all(&from->bits)}; }

// Eight weights in a row; STAGED: they are in shared memory, and otherwise read once from the GPU's.
template <bool STAGED> DEVICE uint4 sixteen_bytes(const void *from) {
  return STAGED ? *static_cast<const uint4 *>(from) : stream_16(from);
}

template <bool STAGED> DEVICE void load_eight(float (&out)[8], const float *from) {
  for (int half = 0; half < 2; ++half) {
    uint4 got = sixteen_bytes<STAGED>(from + 4 * half);
    unsigned words[4] = {got.x, got.y, got.z, got.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) out[4 * half + i] = __uint_as_float(words[i]);
  }
}

template <bool STAGED, class Short> DEVICE void load_eight(float (&out)[8], const Short *from) {
  uint4 got = sixteen_bytes<STAGED>(from);
  unsigned words[4] = {got.x, got.y, got.z, got.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = single(Short{(unsigned short)(words[i] & 0xFFFF)});
    out[2 * i + 1] = single(Short{(unsigned short)(words[i] >> 16)});
  }
}

template <bool STAGED> DEVICE void load_eight(float (&out)[8], const signed char *from) {
  uint2 got = STAGED ? *reinterpret_cast<const uint2 *>(from) : stream_8(from);
  unsigned words[2] = {got.x, got.y};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    // x + 128 as the last byte of 2^23: an instruction to put it there and one to subtract, where a conversion of whole
    // numbers has a quarter of the rate.
    unsigned bits = __byte_perm(words[i / 4] ^ 0x80808080u, 0x4B000000u, 0x7440u + i % 4);
    out[i] = __uint_as_float(bits) - 8388736.0f;
  }
}
