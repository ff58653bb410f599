// The loops of the Gated DeltaNet, written once for every vector width.
//
// Token by token, never in closed form over a chunk: each token's arithmetic is the same however a
// prompt is cut. What a chunk saves is memory traffic, because a block of 32 rows of the state stays
// in the first-level cache while all its tokens pass over it.
#include <cmath>
#include <cstring>

#include "../simd.h"
#include "gated_delta.h"

namespace omni {
namespace OMNI_WIDTH_NAMESPACE {

constexpr float kLog2E = 1.44269504f;
constexpr float kUnitEps = 1e-6f;  // added to the squared length of queries and keys

OMNI_INLINE V sigmoid(V x) { return set1(1.0f) / (set1(1.0f) + exp2(x * set1(-kLog2E))); }
OMNI_INLINE V silu(V x) { return x / (set1(1.0f) + exp2(x * set1(-kLog2E))); }

// log(1 + e^x) = max(x, 0) + log(1 + u) with u = e^-|x| <= 1, relative error below 3e-7;
// log(1 + u) = 2 artanh(s), s = u / (2 + u) <= 1/3.
OMNI_INLINE V softplus(V x) {
  const V u = exp2(min(x, set1(0.0f) - x) * set1(kLog2E));
  const V s = u / (u + set1(2.0f));
  const V square = s * s;
  V p = set1(1.0f / 15);
  p = fma(p, square, set1(1.0f / 13));
  p = fma(p, square, set1(1.0f / 11));
  p = fma(p, square, set1(1.0f / 9));
  p = fma(p, square, set1(1.0f / 7));
  p = fma(p, square, set1(1.0f / 5));
  p = fma(p, square, set1(1.0f / 3));
  p = fma(p, square, set1(1.0f));
  return fma(p, s + s, max(set1(0.0f), x));
}

OMNI_FN static float dot(const float* a, const float* b, int64_t count) {
  V sum = set1(0.0f);
  for (int64_t i = 0; i < count; i += kWidth) sum = fma(load(a + i), load(b + i), sum);
  return hsum(sum);
}

// Row `at` of the convolution's input; the state holds the ones before 0.
OMNI_INLINE const float* input(const DeltaLayer& layer, const DeltaRun& run, int64_t at) {
  return at < 0 ? run.conv + (layer.num_taps - 1 + at) * layer.channels() : run.x + at * run.x_stride;
}

// Convolution and SiLU of `count` channels of tokens [first, first + tokens) -> to [tokens, count].
OMNI_FN static void convolve(const DeltaLayer& layer, const DeltaRun& run, int64_t first,
                             int64_t tokens, int64_t channel, int64_t count, float* to) {
  const int64_t channels = layer.channels(), past = layer.num_taps - 1;
  const float* taps = layer.taps + channel;
  for (int64_t t = 0; t < tokens; ++t, to += count) {
    const float* rows[kMaxTaps];
    for (int64_t w = 0; w <= past; ++w) rows[w] = input(layer, run, first + t - past + w) + channel;
    for (int64_t c = 0; c < count; c += kWidth) {
      V sum = load(rows[0] + c) * load(taps + c);
      for (int64_t w = 1; w <= past; ++w)
        sum = fma(load(rows[w] + c), load(taps + w * channels + c), sum);
      store(to + c, silu(sum));
    }
  }
}

// Scale each row of x [tokens, dim] to the length `length`.
OMNI_FN static void scale_to(float length, float* x, int64_t tokens, int64_t dim) {
  for (int64_t t = 0; t < tokens; ++t, x += dim) {
    const V factor = set1(length / std::sqrt(dot(x, x, dim) + kUnitEps));
    for (int64_t i = 0; i < dim; i += kWidth) store(x + i, load(x + i) * factor);
  }
}

OMNI_FN static void gates(const DeltaLayer& layer, const DeltaRun& run, int64_t first,
                          int64_t tokens, int64_t value_head, DeltaBuffers& buffers) {
  const float* b = run.x + first * run.x_stride + layer.channels() + value_head;
  const V bias = set1(layer.dt_bias[value_head]);
  const V rate = set1(-kLog2E * layer.rate[value_head]);
  static_assert(kDeltaTokens % kWidth == 0, "the gates of a tile are whole vectors");
  for (int64_t t = 0; t < tokens; t += kWidth) {
    float raw_b[kWidth] = {}, raw_a[kWidth] = {};
    for (int64_t i = 0; i < kWidth && t + i < tokens; ++i) {
      raw_b[i] = b[(t + i) * run.x_stride];
      raw_a[i] = b[(t + i) * run.x_stride + layer.value_heads];
    }
    store(buffers.beta + t, sigmoid(load(raw_b)));
    store(buffers.decay + t, exp2(rate * softplus(load(raw_a) + bias)));
  }
}

// d = beta (v - e^g S k), o = e^g S q + d (k . q), S <- e^g S + d k^T for kDeltaRows rows of S.
// Meanwhile fetches as many rows from `fetch` on.
template <bool FETCH>
OMNI_INLINE void step(float* state, const float* fetch, int64_t dim, const float* q, const float* k, float kq,
                      float beta, float decay, const float* v, float* o) {
  V sk[kDeltaRows], sq[kDeltaRows];
  for (int r = 0; r < kDeltaRows; ++r) sk[r] = sq[r] = set1(0.0f);
  for (int64_t i = 0; i < dim; i += kWidth) {
    const V key = load(k + i), query = load(q + i);
    for (int r = 0; r < kDeltaRows; ++r) {
      if (FETCH) __builtin_prefetch(fetch + r * dim + i);
      const V s = load(state + r * dim + i);
      sk[r] = fma(s, key, sk[r]);
      sq[r] = fma(s, query, sq[r]);
    }
  }
  const Four d = (load4(v) - sum4(sk[0], sk[1], sk[2], sk[3]) * decay) * beta;
  store4(o, sum4(sq[0], sq[1], sq[2], sq[3]) * decay + d * kq);
  const V keep = set1(decay);
  V add[kDeltaRows];
  for (int r = 0; r < kDeltaRows; ++r) add[r] = set1(d[r]);
  for (int64_t i = 0; i < dim; i += kWidth) {
    const V key = load(k + i);
    for (int r = 0; r < kDeltaRows; ++r) {
      float* s = state + r * dim + i;
      store(s, fma(add[r], key, load(s) * keep));
    }
  }
}

// A state is cold when its first token comes: rows are fetched so far ahead of their step, but none
// of the next head, which another thread may be writing.
constexpr int64_t kAhead = 2 * kDeltaRows;

// Fetch the first rows of a head's state, before the work that precedes the steps.
OMNI_INLINE void fetch_first(const DeltaLayer& layer, const float* state) {
  const int64_t rows = kAhead < layer.value_dim ? kAhead : layer.value_dim;
  for (int64_t i = 0; i < rows * layer.key_dim; i += 16) __builtin_prefetch(state + i);
}

// Pass `tokens` tokens over one head's state [V, K]. DIM is K, or 0 when it is not known here.
template <int64_t DIM>
OMNI_FN static void advance(const DeltaLayer& layer, int64_t tokens, float* state,
                            DeltaBuffers& buffers) {
  const int64_t dim = DIM ? DIM : layer.key_dim, rows = layer.value_dim;
  for (int64_t block = 0; block < rows; block += kDeltaBlock) {
    const int64_t end = rows < block + kDeltaBlock ? rows : block + kDeltaBlock;
    for (int64_t t = 0; t < tokens; ++t) {
      const float* q = buffers.q + t * dim;
      const float* k = buffers.k + t * dim;
      const float* v = buffers.v + t * rows;
      float* o = buffers.o + t * rows;
      const float kq = buffers.kq[t], beta = buffers.beta[t], decay = buffers.decay[t];
      for (int64_t r = block; r < end; r += kDeltaRows) {
        float* at = state + r * dim;
        if (t == 0 && r + kAhead < rows)
          step<true>(at, at + kAhead * dim, dim, q, k, kq, beta, decay, v + r, o + r);
        else
          step<false>(at, nullptr, dim, q, k, kq, beta, decay, v + r, o + r);
      }
    }
  }
}

// out = o / sqrt(mean(o^2) + eps) * norm * silu(z)
OMNI_FN static void gated_norm(const DeltaLayer& layer, const DeltaRun& run, int64_t first,
                               int64_t tokens, int64_t value_head, const float* o) {
  const int64_t dim = layer.value_dim, width = layer.value_heads * dim;
  const float* z =
      run.x + first * run.x_stride + layer.channels() + 2 * layer.value_heads + value_head * dim;
  float* out = run.out + first * width + value_head * dim;
  for (int64_t t = 0; t < tokens; ++t, o += dim, z += run.x_stride, out += width) {
    const float mean = dot(o, o, dim) / static_cast<float>(dim);
    const V factor = set1(1.0f / std::sqrt(mean + layer.eps));
    for (int64_t i = 0; i < dim; i += kWidth)
      store(out + i, load(o + i) * factor * load(layer.norm + i) * silu(load(z + i)));
  }
}

// Keep the last inputs of `count` channels for the next run, and journal all of them.
OMNI_FN static void remember(const DeltaLayer& layer, const DeltaRun& run, int64_t channel,
                             int64_t count) {
  const size_t bytes = sizeof(float) * count;
  if (run.journal)
    for (int64_t t = 0; t < run.tokens; ++t)
      std::memcpy(run.journal + t * run.journal_stride + channel,
                  run.x + t * run.x_stride + channel, bytes);
  const int64_t past = layer.num_taps - 1;
  for (int64_t row = 0; row < past; ++row)  // ascending: a row is read before it is written
    std::memcpy(run.conv + row * layer.channels() + channel,
                input(layer, run, run.tokens - past + row) + channel, bytes);
}

OMNI_FN static void head(const DeltaLayer& layer, const DeltaRun& run, int64_t key_head,
                         DeltaBuffers& buffers) {
  const int64_t key_dim = layer.key_dim, value_dim = layer.value_dim;
  const int64_t heads = layer.key_heads, group = layer.group();
  const int64_t q_channel = key_head * key_dim, k_channel = (heads + key_head) * key_dim;
  const int64_t v_channel = 2 * heads * key_dim + key_head * group * value_dim;
  const int64_t state_size = value_dim * key_dim;
  float* states = run.recurrent + key_head * group * state_size;
  fetch_first(layer, states);

  for (int64_t first = 0; first < run.tokens; first += kDeltaTokens) {
    const int64_t left = run.tokens - first;
    const int64_t tokens = left < kDeltaTokens ? left : kDeltaTokens;
    convolve(layer, run, first, tokens, q_channel, key_dim, buffers.q);
    convolve(layer, run, first, tokens, k_channel, key_dim, buffers.k);
    scale_to(1.0f / std::sqrt(static_cast<float>(key_dim)), buffers.q, tokens, key_dim);
    scale_to(1.0f, buffers.k, tokens, key_dim);
    for (int64_t t = 0; t < tokens; ++t)
      buffers.kq[t] = dot(buffers.k + t * key_dim, buffers.q + t * key_dim, key_dim);
    for (int64_t i = 0; i < group; ++i) {
      const int64_t value_head = key_head * group + i;
      float* state = states + i * state_size;
      if (i > 0) fetch_first(layer, state);
      convolve(layer, run, first, tokens, v_channel + i * value_dim, value_dim, buffers.v);
      gates(layer, run, first, tokens, value_head, buffers);
      if (key_dim == 128)
        advance<128>(layer, tokens, state, buffers);
      else
        advance<0>(layer, tokens, state, buffers);
      if (run.out) gated_norm(layer, run, first, tokens, value_head, buffers.o);
    }
  }

  remember(layer, run, q_channel, key_dim);
  remember(layer, run, k_channel, key_dim);
  remember(layer, run, v_channel, group * value_dim);
  if (run.journal)
    for (int64_t t = 0; t < run.tokens; ++t)
      for (int64_t gate = 0; gate < 2; ++gate) {
        const int64_t at = layer.channels() + gate * layer.value_heads + key_head * group;
        std::memcpy(run.journal + t * run.journal_stride + at, run.x + t * run.x_stride + at,
                    sizeof(float) * group);
      }
}

}  // namespace OMNI_WIDTH_NAMESPACE
}  // namespace omni
