// Whether the portable set's fused products and half precision are to the bit those of an x86 processor that has
// instructions for them: numbers whose sums lie halfway between two floats, subnormals, every half.

#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <type_traits>
#include <vector>

#define ISA 0
namespace portable {
#include "../../kernels/csrc/simd.inc"
}

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#undef INLINE
#undef ISA
#define ISA 1
namespace avx2 {
#include "../../kernels/csrc/simd.inc"
static void fused(float *out, const float *a, const float *b, const float *c) {
  store(out, fused(load_lanes(a), load_lanes(b), load_lanes(c)));
}
static void halves(uint16_t *out, const float *x) { store_halves(reinterpret_cast<Half *>(out), load_lanes(x)); }
static void singles(float *out, const uint16_t *x) { store(out, load_lanes(reinterpret_cast<const Half *>(x))); }
}  // namespace avx2
#pragma GCC pop_options

static std::mt19937 engine(3);

// A float with this exponent (0 subnormal) and, if `few`, few bits set: products and sums of such ones often end in 1000...
static float random_float(int exponent, bool few) {
  const uint32_t word = uint32_t(engine()), bits = (few ? word & 0x807ff000 : word & 0x807fffff) | uint32_t(exponent) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static int below(int count) { return int(engine() % count); }

int main() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return std::puts("no AVX2"), 0;
  long different = 0;
  for (int round = 0; round < 2'000'000; ++round) {
    float a[8], b[8], c[8], expected[8], found[8];
    for (int i = 0; i < 8; ++i) {
      const bool small = round % 5 == 0;
      const int first = small ? below(10) : 100 + below(50), second = small ? 100 + below(28) : 100 + below(50);
      a[i] = random_float(first, round % 2), b[i] = random_float(second, round % 2);
      // (1 + x) (1 - x): beside a larger number, FP64 takes it for a power of two.
      if (const float x = ldexpf(1.0f, -15 - below(9)); round % 11 == 0)
        a[i] = ldexpf(below(2) ? 1 + x : -1 - x, first - 127), b[i] = ldexpf(1 - x, second - 127);
      c[i] = round % 7 ? random_float(std::clamp(small ? below(12) : first + second - 157 + below(60), 0, 254), round % 3) : 0.0f;
    }
    avx2::fused(expected, a, b, c);
    for (int i = 0; i < 8; i += portable::WIDTH)
      portable::store(found + i, portable::fused(portable::load_lanes(a + i), portable::load_lanes(b + i), portable::load_lanes(c + i)));
    different += std::memcmp(expected, found, sizeof found) != 0;
    // Around the range of half precision.
    uint16_t expected_halves[8], found_halves[8];
    for (float &value : a) value = random_float(100 + below(46), round % 2);
    avx2::halves(expected_halves, a);
    for (int i = 0; i < 8; i += portable::WIDTH)
      portable::store_halves(reinterpret_cast<portable::Half *>(found_halves + i), portable::load_lanes(a + i));
    different += std::memcmp(expected_halves, found_halves, sizeof found_halves) != 0;
  }
  for (int bits = 0; bits < 1 << 16; bits += 8) {
    if ((bits & 0x7c00) == 0x7c00) continue;  // not finite
    uint16_t halves[8];
    float expected[8], found[8];
    for (int i = 0; i < 8; ++i) halves[i] = uint16_t(bits + i);
    avx2::singles(expected, halves);
    for (int i = 0; i < 8; ++i) found[i] = portable::single(portable::Half{halves[i]});
    different += std::memcmp(expected, found, sizeof found) != 0;
    for (int i = 0; i < 8; i += portable::WIDTH)
      portable::store(found + i, portable::load_lanes(reinterpret_cast<const portable::Half *>(halves + i)));
    different += std::memcmp(expected, found, sizeof found) != 0;
  }
  std::printf("%ld different\n", different);
  return different != 0;
}
