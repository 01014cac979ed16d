// A code from the logits of one item, by one block, as kernels/sample_step.py draws it: temperature, top-k and top-p as
// thresholds found bit by bit, Gumbel noise from Philox, argmax.
#pragma once
#include <arguments.cuh>
#include <exchange.cuh>

// Codes of a thread: quads of four neighbours, which share a block of random bits.
constexpr int QUADS = (CODES + 4 * THREADS - 1) / (4 * THREADS);
DEVICE int code_of(int i) { return 4 * (int(threadIdx.x) + i / 4 * THREADS) + i % 4; }

// Whole numbers in the order of floats, and back.
DEVICE unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x);
  return bits < 0x80000000u ? bits ^ 0x80000000u : bits ^ 0xFFFFFFFFu;
}

DEVICE float unordered(unsigned order) {
  return __uint_as_float(order >= 0x80000000u ? order ^ 0x80000000u : order ^ 0xFFFFFFFFu);
}

DEVICE void philox(unsigned (&c)[4], unsigned k0, unsigned k1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const Word product_0 = Word(c[0]) * 0xD2511F53u, product_2 = Word(c[2]) * 0xCD9E8D57u;
    c[0] = unsigned(product_2 >> 32) ^ c[1] ^ k0;
    c[2] = unsigned(product_0 >> 32) ^ c[3] ^ k1;
    c[1] = unsigned(product_2);
    c[3] = unsigned(product_0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

struct Sampler {
  Meeting &meeting;
  float logits[4 * QUADS], noise[4 * QUADS];
  int turn = 0;

  // Before the logits are there.
  DEVICE void draw_noise(const Arguments &a, int item, int pos) {
#pragma unroll
    for (int quad = 0; quad < QUADS; ++quad) {
      unsigned bits[4] = {unsigned(a.items[item]), unsigned(a.noise_key[2]), unsigned(a.noise_key[3] + pos),
                          unsigned(code_of(4 * quad) / 4)};
      philox(bits, unsigned(a.noise_key[0]), unsigned(a.noise_key[1]));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float uniform = (float(bits[i] >> 9) + 0.5f) * 1.1920928955078125e-07f;
        noise[4 * quad + i] = -logf(-logf(uniform));
      }
    }
  }

  // The largest t for which the `share` of all codes whose logits, as whole numbers, are t or more exceeds `limit`.
  template <class Share> DEVICE unsigned threshold(float limit, Share share) {
    unsigned found = 0;
    for (unsigned bit = 1u << 31; bit; bit >>= 1) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 4 * QUADS; ++i)
        if (code_of(i) < CODES && ordered(logits[i]) >= (found | bit)) sum += share(i);
      if (block_sum(sum, meeting, turn) > limit) found |= bit;
    }
    return found;
  }

  // Leave nothing below the least logit of those that are, as whole numbers, `last` or more: compared as floats, so
  // that a negative zero ties with a positive one.
  DEVICE void cut(unsigned last) {
    Word least = 0;
#pragma unroll
    for (int i = 0; i < 4 * QUADS; ++i)
      if (code_of(i) < CODES && ordered(logits[i]) >= last) least = larger(least, Word(~ordered(logits[i])));
    const float limit = unordered(~unsigned(block_max(least, meeting, turn)));
#pragma unroll
    for (int i = 0; i < 4 * QUADS; ++i)
      if (!(logits[i] >= limit)) logits[i] = minus_infinity();
  }

  DEVICE float most() {
    Word order = 0;
#pragma unroll
    for (int i = 0; i < 4 * QUADS; ++i)
      if (code_of(i) < CODES) order = larger(order, Word(ordered(logits[i])));
    return unordered(unsigned(block_max(order, meeting, turn)));
  }

  DEVICE int draw(const Arguments &a) {
    const float top_k = a.filters[1], top_p = a.filters[2];
#pragma unroll
    for (int i = 0; i < 4 * QUADS; ++i) logits[i] /= a.filters[0];
    if (top_k > 0) cut(threshold((top_k < CODES ? top_k : CODES) - 0.5f, [](int) { return 1.0f; }));
    if (top_p < 1) {
      const float peak = most();
      float masses[4 * QUADS], mass = 0;
#pragma unroll
      for (int i = 0; i < 4 * QUADS; ++i) mass += masses[i] = code_of(i) < CODES ? expf(logits[i] - peak) : 0;
      const float limit = top_p * block_sum(mass, meeting, turn);
      cut(threshold(limit, [&](int i) { return masses[i]; }));
    }
    Word best = 0;
#pragma unroll
    for (int i = 0; i < 4 * QUADS; ++i)
      // Of two that tie the first.
      if (code_of(i) < CODES)
        best = larger(best, Word(ordered(logits[i] + noise[i])) << 32 | unsigned(~code_of(i)));
    return int(~unsigned(block_max(best, meeting, turn)));
  }
};
