// Runs the native decoder on small random models, for the sanitizers (`make sanitize`): every pattern, ragged sizes,
// one and several threads, FP32, FP16 and int8, keys and values in FP32 and FP16, on every instruction set of this machine.
// Fails if the number of threads, the batch, a prompt or the instruction set changes a code, or if the codes with weights
// stored as FP16 are not those with the same weights in FP32. Prints a digest of all codes and conditions last: that of any
// other processor.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <vector>

#include "../../kernels/csrc/decode.h"

namespace {

// Evenly spread, in exact steps: the same on every processor, as the library's own distributions need not be.
float random_float(std::mt19937 &random, float mean, float reach) {
  return mean + reach * (float(random() >> 8) * 0x1p-23f - 1.0f);
}

// FNV-1a of everything that was computed, in order.
uint64_t digest = 14695981039346656037ull;

template <typename Value>
void add_to_digest(const std::vector<Value> &values) {
  const auto *bytes = reinterpret_cast<const unsigned char *>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(Value); ++i) digest = (digest ^ bytes[i]) * 1099511628211ull;
}

struct Sizes {
  int depth, width, attn_width, heads, mlp_width, codebook_size, num_rows, row_len;
  int stored;
  bool fp16_values;
  int cached;
};

class RandomModel {
 public:
  RandomModel(const Sizes &sizes, int batch) : random_(1), fp16_values_(sizes.fp16_values) {
    const int context_len = sizes.num_rows * sizes.row_len;
    for (int i = 0; i < sizes.depth; ++i) {
      Layer layer{};
      layer.ln_0_weight = floats(sizes.width), layer.ln_0_bias = floats(sizes.width);
      layer.ln_1_weight = floats(sizes.width), layer.ln_1_bias = floats(sizes.width);
      layer.pattern = i % 6;
      layer.qkv = matrix(sizes.width, (layer.pattern == CROSS ? 1 : 3) * sizes.attn_width, true, sizes.stored);
      layer.proj = matrix(sizes.attn_width, sizes.width, true, sizes.stored);
      layer.up = matrix(sizes.width, sizes.mlp_width, true, sizes.stored);
      layer.down = matrix(sizes.mlp_width, sizes.width, true, sizes.stored);
      const int all_slots[] = {sizes.row_len, context_len, 2 * sizes.row_len, context_len, sizes.row_len + 3, 21};
      layer.slots = all_slots[layer.pattern];
      layer.cached = sizes.cached;
      // NaN: what is read before it was written shows. CROSS sees what was there before.
      for (auto **cache : {&layer.keys, &layer.values}) {
        const int slots = cache == &layer.keys ? (layer.slots + 15) / 16 * 16 : layer.slots;
        const size_t lane = size_t(slots) * sizes.attn_width;
        std::vector<float> given(lane, NAN);
        if (layer.pattern == CROSS)
          for (auto &value : given) value = random_float(random_, 0.05f, 0.9f);
        *cache = sizes.cached == FP16 ? static_cast<void *>(repeated(halves_, as_halves(given), batch)) : repeated(floats_, given, batch);
      }
      layers_.push_back(layer);
    }
    model = {sizes.depth,         sizes.width, sizes.attn_width, sizes.heads, sizes.mlp_width,
             sizes.codebook_size, context_len, sizes.row_len, sizes.heads != 3, 0.5f,        floats(size_t(sizes.codebook_size) * sizes.width),
             floats(size_t(context_len) * sizes.width),          floats(sizes.width),
             matrix(sizes.width, sizes.codebook_size, false, sizes.stored),     layers_.data()};
  }

  Model model;

 private:
  // Halves of their signs, from 1/2 to 1 in size; NaN where they are.
  static std::vector<uint16_t> as_halves(const std::vector<float> &values) {
    std::vector<uint16_t> halves;
    for (const float value : values) {
      const int size = int(std::ldexp(std::abs(value), 10));
      halves.push_back(std::isnan(value) ? 0x7e00 : uint16_t((value < 0) << 15 | (size < 1024 ? 14 << 10 | (size * 2 & 1023) : 0x3c00)));
    }
    return halves;
  }

  template <typename Value>
  static Value *repeated(std::vector<std::vector<Value>> &kept, const std::vector<Value> &one, int times) {
    kept.emplace_back();
    for (int i = 0; i < times; ++i) kept.back().insert(kept.back().end(), one.begin(), one.end());
    return kept.back().data();
  }

  const float *floats(size_t count) {
    std::vector<float> values(count);
    for (auto &value : values) value = random_float(random_, 0.05f, 0.9f);
    floats_.push_back(std::move(values));
    return floats_.back().data();
  }

  Matrix matrix(int in, int out, bool bias, int stored) {
    const int padded = (out + PANEL - 1) / PANEL * PANEL;
    Matrix m{};
    m.in = in, m.out = out;
    m.bias = bias ? floats(padded) : nullptr;
    m.stored = stored;
    if (stored == INT8) {
      std::vector<int8_t> values(size_t(in + in % 2) * padded);
      for (auto &value : values) value = int8_t(random_() % 255 - 127);
      bytes_.push_back(std::move(values));
      m.panels = bytes_.back().data();
      m.scale = floats(padded);
    } else if (fp16_values_) {
      std::vector<uint16_t> halves(size_t(in) * padded);
      std::vector<float> values;
      for (auto &half : halves) {
        // Either sign, exponents from 2^-15 (subnormal) to 2^-1.
        half = uint16_t(random_() % 2 << 15 | random_() % 15 << 10 | random_() % 1024);
        const int exponent = half >> 10 & 31, fraction = half & 1023;
        const float size = exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(float(fraction), -24);
        values.push_back(half >> 15 ? -size : size);
      }
      halves_.push_back(std::move(halves));
      floats_.push_back(std::move(values));
      m.panels = stored == FP16 ? static_cast<const void *>(halves_.back().data()) : floats_.back().data();
    } else {
      m.panels = floats(size_t(in) * padded);
    }
    return m;
  }

  std::mt19937 random_;
  std::vector<std::vector<float>> floats_;
  std::vector<std::vector<int8_t>> bytes_;
  std::vector<std::vector<uint16_t>> halves_;
  bool fp16_values_;
  std::vector<Layer> layers_;
};

// With `prompt`, the codes of these items, the first third is taken in instead of decoded.
std::vector<int64_t> sample(const Sizes &sizes, int first_item, int batch, int threads, int top_k, float top_p,
                            const int64_t *prompt = nullptr) {
  RandomModel random(sizes, batch);
  const int context_len = random.model.context_len;
  std::vector<int64_t> codes(size_t(batch) * context_len, -1), items;
  for (int item = 0; item < batch; ++item) items.push_back(first_item + item);
  std::vector<float> cond(size_t(batch) * context_len * sizes.width, 0.25f), start(size_t(batch) * sizes.width, 0.5f);
  Task task{batch, codes.data(), cond.data(), start.data(), items.data(), 1234567890123ull, 77, 1, top_k, 0.9f, top_p};
  const int middle = context_len / 3;
  if (prompt) {
    for (int item = 0; item < batch; ++item)
      std::copy_n(prompt + item * context_len, middle, codes.begin() + item * context_len);
    // In two pieces, the second from the middle of a row on.
    fastjukebox_prefill(&random.model, &task, 0, sizes.row_len + 1, middle, threads);
    fastjukebox_prefill(&random.model, &task, sizes.row_len + 1, middle, middle, threads);
  } else {
    fastjukebox_decode(&random.model, &task, 0, middle, threads);
  }
  fastjukebox_decode(&random.model, &task, middle, context_len, threads);
  return codes;
}

// The codes by drafts of the same model, which are all right, or of one with a layer less, a few checks at a time: items come
// to positions of their own.
std::vector<int64_t> drafted(const Sizes &sizes, int first_item, int batch, int threads, int top_k, float top_p, bool right,
                             int length) {
  Sizes fewer = sizes;
  fewer.depth -= !right;
  RandomModel random(sizes, batch), draft(fewer, batch);
  const int context_len = random.model.context_len;
  std::vector<int64_t> codes(size_t(batch) * context_len, -1), items;
  for (int item = 0; item < batch; ++item) items.push_back(first_item + item);
  const std::vector<float> cond(size_t(batch) * context_len * sizes.width, 0.25f), start(size_t(batch) * sizes.width, 0.5f);
  Task task{batch, codes.data(), cond.data(), start.data(), items.data(), 1234567890123ull, 77, 1, top_k, 0.9f, top_p};
  std::vector<int32_t> reached(batch, 0);
  for (int number = 0, least = 0; least < context_len; ++number) {
    const std::vector<int32_t> before = reached;
    // Some may be there already.
    const int stop = number % 3 ? context_len : std::min(context_len, least + sizes.row_len / 2 + 1), checks = number % 4 + 1;
    int64_t counts[3] = {-1, -1, -1}, written = 0, most = 0;
    fastjukebox_speculate(&random.model, &task, &draft.model, &task, reached.data(), stop, length + number % 2, checks, threads, counts);
    for (int item = 0; item < batch; ++item) {
      written += reached[item] - before[item], most += before[item] < stop ? checks : 0;
      if (reached[item] < before[item] || reached[item] > std::max(stop, int(before[item]))) return {};
    }
    // What is not guessed right is the model's own, one code in each of some checks.
    const int64_t corrected = written - counts[0];
    if (corrected < 0 || corrected > counts[1] || counts[1] > most || counts[2] < written || (right && corrected)) return {};
    least = *std::min_element(reached.begin(), reached.end());
  }
  return codes;
}

// Whether `part` is items `first` ... of `whole`, all of them codes.
bool agrees(const char *what, const Sizes &sizes, const std::vector<int64_t> &part, const std::vector<int64_t> &whole,
            int first) {
  if (part.empty()) {
    std::printf("%s, width %d, %s: wrong counts\n", fastjukebox_isa(), sizes.width, what);
    return false;
  }
  const int context_len = sizes.num_rows * sizes.row_len;
  for (size_t i = 0; i < part.size(); ++i) {
    const bool is_code = part[i] >= 0 && part[i] < sizes.codebook_size;
    if (is_code && part[i] == whole[size_t(first) * context_len + i]) continue;
    std::printf("%s, width %d, %s: code %d of item %d differs\n", fastjukebox_isa(), sizes.width, what,
                int(i % context_len), first + int(i / context_len));
    return false;
  }
  return true;
}

// Whether the codes depend on nothing but the seed; `known`: those of an earlier instruction set, if there was one.
bool check(const Sizes &sizes, int top_k, float top_p, std::vector<int64_t> &known) {
  const auto whole = sample(sizes, 0, 9, 1, top_k, top_p);
  if (known.empty()) add_to_digest(known = whole);
  if (!agrees("portable", sizes, known, whole, 0)) return false;
  const struct {
    int first, batch, threads, alone;
  } parts[] = {{0, 9, 3, 0}, {0, 9, 2, 1}, {0, 1, 2, 1}, {2, 2, 4, 1}, {5, 4, 2, 0}, {4, 5, 3, 1}};
  for (const auto &[first, batch, threads, alone] : parts) {
    // Threads take items of their own, or each a part of all items' work.
    fastjukebox_weights_alone(alone << 20);
    if (!agrees("another batch or team", sizes, sample(sizes, first, batch, threads, top_k, top_p), whole, first)) return false;
    const int64_t *prompt = whole.data() + size_t(first) * sizes.num_rows * sizes.row_len;
    const auto continued = sample(sizes, first, batch, threads, top_k, top_p, prompt);
    if (!agrees("after a prompt", sizes, continued, whole, first)) return false;
    const auto by_drafts = drafted(sizes, first, std::min(batch, 4), threads, top_k, top_p, first == 2, 2 + first + threads);
    if (!agrees("by drafts", sizes, by_drafts, whole, first)) return false;
  }
  Sizes wide = sizes;
  wide.stored = FP32;
  return sizes.stored != FP16 || agrees("stored as FP32", sizes, sample(wide, 0, 9, 1, top_k, top_p), whole, 0);
}

// Conditions of ragged sizes: the same on any number of threads, and on every instruction set.
bool conditions() {
  const struct {
    int width, inner, hidden, stages, depth, stride, count;
  } cases[] = {{33, 17, 9, 2, 3, 2, 70}, {16, 16, 32, 1, 0, 4, 5}, {5, 40, 40, 3, 1, 2, 1}};
  std::mt19937 random(1);
  for (const auto &sizes : cases) {
    std::vector<std::vector<float>> kept;
    const auto floats = [&](size_t count) {
      kept.emplace_back(count);
      for (auto &value : kept.back()) value = random_float(random, 0.01f, 0.35f);
      return static_cast<const float *>(kept.back().data());
    };
    const auto convolution = [&](int in, int out, int taps, int dilation, int first) {
      const int padded = (out + PANEL - 1) / PANEL * PANEL;
      return Convolution{floats(size_t(taps) * in * padded), floats(padded), in, out, taps, dilation, first};
    };
    std::vector<Convolution> convolutions{convolution(sizes.width, sizes.inner, 3, 1, -1)};
    int ratio = 1;
    for (int stage = 0; stage < sizes.stages; ++stage, ratio *= sizes.stride) {
      for (int block = 0, dilation = 1; block < sizes.depth; ++block, dilation *= 3) {
        convolutions.push_back(convolution(sizes.inner, sizes.hidden, 3, dilation, -dilation));
        convolutions.push_back(convolution(sizes.hidden, sizes.inner, 1, 1, 0));
      }
      const int out = stage + 1 < sizes.stages ? sizes.inner : sizes.width;
      for (int phase = 0; phase < sizes.stride; ++phase)
        convolutions.push_back(convolution(sizes.inner, out, 2, 1, phase < sizes.stride / 2 ? -1 : 0));
    }
    const Conditioner conditioner{sizes.width, sizes.inner, sizes.hidden, sizes.stages, sizes.depth, sizes.stride, 0.7f,
                                  floats(size_t(9) * sizes.width), floats(sizes.width), floats(sizes.width), convolutions.data()};
    std::vector<int64_t> codes;
    for (int i = 0; i < sizes.count; ++i) codes.push_back(random() % 9);
    std::vector<float> portable, alone, found(size_t(sizes.count) * ratio * sizes.width);
    for (int isa = 0; isa < 4; ++isa) {
      fastjukebox_limit(isa);
      for (int threads : {1, 3}) {
        std::fill(found.begin(), found.end(), NAN);
        std::vector<float> room(fastjukebox_condition_room(&conditioner, sizes.count));
        for (int step = 0; step < 1 + sizes.stages * (sizes.depth + 1); ++step)
          fastjukebox_condition(&conditioner, codes.data(), sizes.count, found.data(), room.data(), step, threads);
        if (threads == 1) alone = found;
      }
      if (found != alone) {
        std::printf("%s: a condition of width %d depends on the threads\n", fastjukebox_isa(), sizes.width);
        return false;
      }
      if (isa == 0) add_to_digest(portable = found);
      if (found != portable) {
        std::printf("%s: a condition of width %d is another one\n", fastjukebox_isa(), sizes.width);
        return false;
      }
    }
  }
  std::printf("conditions: the same on every instruction set\n");
  return true;
}

// Threads share the same things on every instruction set: the search for races, which is slow, is spared those between the
// least and the best.
#ifdef __SANITIZE_THREAD__
constexpr int NEXT_ISA = 3;
#else
constexpr int NEXT_ISA = 1;
#endif

}  // namespace

int main(int count, char **) {
  // With any argument, the digest alone.
  const bool all = count == 1;
  if (!conditions()) return 1;
  const Sizes cases[] = {
      {6, 32, 16, 1, 32, 64, 4, 8, FP32, false, FP32},
      {7, 37, 15, 3, 41, 77, 6, 7, FP16, true, FP32},
      {6, 33, 10, 2, 70, 33, 4, 17, INT8, false, FP16},
      // Heads of whole panels, rows long enough to share: threads divide heads, and rows of a prompt.
      {6, 48, 64, 2, 64, 50, 4, 33, FP16, true, FP16},
      {6, 40, 64, 4, 64, 50, 3, 40, INT8, false, FP16},
  };
  const struct {
    int top_k;
    float top_p;
  } filters[] = {{0, 1.0f}, {5, 1.0f}, {0, 0.7f}, {9, 0.5f}};
  std::vector<std::vector<int64_t>> known(std::size(cases) * std::size(filters));
  const char *last = "";
  for (int isa = 0; isa < (all ? 4 : 1); isa += NEXT_ISA) {
    fastjukebox_limit(all ? isa : 3);
    // This processor has no better one.
    if (fastjukebox_isa() == last) break;
    last = fastjukebox_isa();
    auto at = known.begin();
    for (const auto &sizes : cases) {
      for (const auto &[top_k, top_p] : filters) {
        if (!all)
          add_to_digest(sample(sizes, 0, 9, 1, top_k, top_p));
        else if (!check(sizes, top_k, top_p, *at++))
          return 1;
      }
    }
    if (all) std::printf("%s: the same codes on any batch, any number of threads, after any prompt\n", last);
  }
  std::printf("digest %016llx\n", static_cast<unsigned long long>(digest));
}
