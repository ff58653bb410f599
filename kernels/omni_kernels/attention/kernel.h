// The inner loops of paged attention, written once for every vector width.
//
// Scores are vectors along keys: the keys of a block are transposed into a buffer that all queries
// of the tile share, so one (query, key) dot product is one chain of multiply-adds over the
// dimension, however many queries there are. A row's result is the same bits alone or in a batch.
#include <cmath>
#include <limits>

#include "../simd.h"
#include "attention.h"

namespace omni {
namespace OMNI_WIDTH_NAMESPACE {

// 4 x 4 accumulators of 32 registers, or 4 x 2 of 16: enough to hide the latency of an addition.
constexpr int kRowsAtOnce = 4;  // the switches below name its remainders
constexpr int kVectors = kWidth == 16 ? 4 : 2;
static_assert(kBlockKeys % (kWidth * kVectors) == 0, "a block is whole strips of vectors");

// Transpose the keys of a block to [dim, kBlockKeys] and fetch its values, which come next.
// Fetches are spread over the arithmetic: one row of one head is too short for the hardware to
// notice a stream.
OMNI_FN static __attribute__((noinline)) void transpose(const float* const* rows, const float* const* values, int64_t dim,
                              float* keys) {
  for (int first = 0; first < kBlockKeys; first += kWidth)
    for (int64_t d = 0; d < dim; d += 4) {
      for (int i = 0; i < kWidth / 4; ++i)
        __builtin_prefetch(values[first + d / 4 % 4 * (kWidth / 4) + i] + d / 16 * 16);
      V a = load_lanes(rows + first, d), b = load_lanes(rows + first + 1, d);
      V c = load_lanes(rows + first + 2, d), e = load_lanes(rows + first + 3, d);
      transpose4(a, b, c, e);
      float* to = keys + d * kBlockKeys + first;
      store(to, a);
      store(to + kBlockKeys, b);
      store(to + 2 * kBlockKeys, c);
      store(to + 3 * kBlockKeys, e);
    }
}

template <int ROWS>
OMNI_FN static void score(const float* q, int64_t dim, const float* keys, float* scores) {
  for (int strip = 0; strip < kBlockKeys; strip += kWidth * kVectors) {
    V acc[ROWS][kVectors];
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < kVectors; ++i) acc[r][i] = set1(0.0f);
    for (int64_t d = 0; d < dim; ++d) {
      V key[kVectors];
      for (int i = 0; i < kVectors; ++i)
        key[i] = load(keys + d * kBlockKeys + strip + i * kWidth);
      for (int r = 0; r < ROWS; ++r) {
        const V value = set1(q[r * dim + d]);
        for (int i = 0; i < kVectors; ++i) acc[r][i] = fma(value, key[i], acc[r][i]);
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < kVectors; ++i)
        store(scores + r * kBlockKeys + strip + i * kWidth, acc[r][i]);
  }
}

// o = o * decay + p V for ROWS queries and VECTORS vectors of the dimension; fetches `ahead`.
template <int ROWS, int VECTORS>
OMNI_FN static void weigh(const float* p, const float* decay, const float* const* rows,
                          const float* const* ahead, int count, int64_t dim, int64_t at,
                          float* o) {
  V acc[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECTORS; ++i)
      acc[r][i] = load(o + r * dim + at + i * kWidth) * set1(decay[r]);
  for (int j = 0; j < count; ++j) {
    const float* row = rows[j] + at;
    if (ahead)
      for (int64_t d = 0; d < dim; d += 16) __builtin_prefetch(ahead[j] + d);
    V value[VECTORS];
    for (int i = 0; i < VECTORS; ++i) value[i] = load(row + i * kWidth);
    for (int r = 0; r < ROWS; ++r) {
      const V weight = set1(p[r * kBlockKeys + j]);
      for (int i = 0; i < VECTORS; ++i) acc[r][i] = fma(weight, value[i], acc[r][i]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECTORS; ++i) store(o + r * dim + at + i * kWidth, acc[r][i]);
}

// Turn one query's scores into weights, of which only the first `valid` keys are allowed.
OMNI_FN static __attribute__((noinline)) void soften(float* scores, int64_t valid, float& most, float& weight,
                           float& decay) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  if (valid <= 0) {  // no key of this block precedes the query
    for (int i = 0; i < kBlockKeys; i += kWidth) store(scores + i, set1(0.0f));
    decay = 1.0f;
    return;
  }
  for (int64_t i = valid; i < kBlockKeys; ++i) scores[i] = kNone;
  V high = load(scores);
  for (int i = kWidth; i < kBlockKeys; i += kWidth) high = max(high, load(scores + i));
  const float found = hmax(high);
  const float next = found > most ? found : most;
  V sum = set1(0.0f);
  for (int i = 0; i < kBlockKeys; i += kWidth) {
    const V p = exp2(load(scores + i) - set1(next));
    store(scores + i, p);
    sum = sum + p;
  }
  decay = exp2_one(most - next);
  weight = weight * decay + hsum(sum);
  most = next;
}

template <int ROWS>
OMNI_FN static void score_tile(AttentionBuffers& buffers, int64_t query, int64_t dim) {
  score<ROWS>(buffers.q + query * dim, dim, buffers.keys, buffers.scores + query * kBlockKeys);
}

template <int ROWS>
OMNI_FN static void weigh_tile(AttentionBuffers& buffers, int64_t query, const float* const* rows,
                               const float* const* ahead, int count, int64_t dim, float* state) {
  const float* p = buffers.scores + query * kBlockKeys;
  const float* decay = buffers.decay + query;
  float* o = state + query * dim;
  int64_t at = 0;
  for (; at + kWidth * kVectors <= dim; at += kWidth * kVectors, ahead = nullptr)
    weigh<ROWS, kVectors>(p, decay, rows, ahead, count, dim, at, o);
  for (; at < dim; at += kWidth) weigh<ROWS, 1>(p, decay, rows, nullptr, count, dim, at, o);
}

// Find the rows of the keys `first` .. `first + count - 1`; the last one fills the block, where
// scores are masked and values unused.
OMNI_FN static void locate(const Attention& problem, const AttentionTile& tile, int64_t first,
                           int64_t count, const float** keys, const float** values) {
  const int64_t* pages = problem.pages + problem.page_offsets[tile.sequence];
  const int64_t token = problem.kv_heads * problem.dim;
  int64_t page = first / problem.page_tokens, inside = first % problem.page_tokens;
  int64_t j = 0;
  for (; j < count; ++page, inside = 0) {
    int64_t offset =
        (pages[page] * problem.page_tokens + inside) * token + tile.kv_head * problem.dim;
    for (; inside < problem.page_tokens && j < count; ++inside, ++j, offset += token) {
      keys[j] = problem.k + offset;
      values[j] = problem.v + offset;
    }
  }
  for (; j < kBlockKeys; ++j) {
    keys[j] = keys[count - 1];
    values[j] = values[count - 1];
  }
}

OMNI_INLINE int64_t block_count(int64_t end, int64_t first) {
  return end - first < kBlockKeys ? end - first : kBlockKeys;
}

OMNI_FN static void segment(const Attention& problem, const AttentionTile& tile, int64_t number,
                            AttentionBuffers& buffers, float* state) {
  const int64_t dim = problem.dim, group = problem.group();
  const int64_t queries = tile.rows * group;
  float* most = state + queries * dim;
  float* weight = most + queries;

  // Scores in powers of two: exp(s) = 2^(s log2 e).
  const float factor = problem.scale * 1.44269504f;
  for (int64_t row = 0; row < tile.rows; ++row) {
    const float* from =
        problem.q + (tile.first_row + row) * problem.q_stride + tile.kv_head * group * dim;
    float* to = buffers.q + row * group * dim;
    for (int64_t i = 0; i < group * dim; i += kWidth) store(to + i, load(from + i) * set1(factor));
  }
  for (int64_t i = 0; i < queries * dim; i += kWidth) store(state + i, set1(0.0f));
  for (int64_t i = 0; i < queries; ++i) {
    most[i] = -std::numeric_limits<float>::infinity();
    weight[i] = 0.0f;
  }

  const int64_t all = tile.position + tile.rows;
  const int64_t end = all < (number + 1) * kSegmentKeys ? all : (number + 1) * kSegmentKeys;
  int now = 0;
  int64_t first = number * kSegmentKeys;
  locate(problem, tile, first, block_count(end, first), buffers.key_rows[now],
         buffers.value_rows[now]);
  for (; first < end; first += kBlockKeys, now = 1 - now) {
    const int count = static_cast<int>(block_count(end, first));
    const int64_t next = first + kBlockKeys;
    const float* const* ahead = nullptr;
    if (next < all) {
      ahead = buffers.key_rows[1 - now];
      locate(problem, tile, next, block_count(all, next), buffers.key_rows[1 - now],
             buffers.value_rows[1 - now]);
    }
    const float* const* values = buffers.value_rows[now];
    transpose(buffers.key_rows[now], values, dim, buffers.keys);
    for (int64_t query = 0; query < queries; query += kRowsAtOnce)
      switch (queries - query) {
        case 1: score_tile<1>(buffers, query, dim); break;
        case 2: score_tile<2>(buffers, query, dim); break;
        case 3: score_tile<3>(buffers, query, dim); break;
        default: score_tile<4>(buffers, query, dim); break;
      }
    for (int64_t query = 0; query < queries; ++query)
      soften(buffers.scores + query * kBlockKeys, tile.position + query / group - first + 1,
             most[query], weight[query], buffers.decay[query]);
    for (int64_t query = 0; query < queries; query += kRowsAtOnce, ahead = nullptr)
      switch (queries - query) {
        case 1: weigh_tile<1>(buffers, query, values, ahead, count, dim, state); break;
        case 2: weigh_tile<2>(buffers, query, values, ahead, count, dim, state); break;
        case 3: weigh_tile<3>(buffers, query, values, ahead, count, dim, state); break;
        default: weigh_tile<4>(buffers, query, values, ahead, count, dim, state); break;
      }
  }
}

OMNI_FN static void merge(const Attention& problem, int64_t queries, float* into,
                          const float* from) {
  const int64_t dim = problem.dim;
  float* most = into + queries * dim;
  float* weight = most + queries;
  const float* from_most = from + queries * dim;
  const float* from_weight = from_most + queries;
  for (int64_t query = 0; query < queries; ++query) {
    if (from_weight[query] == 0.0f) continue;  // this segment lies after the query
    const float next = most[query] > from_most[query] ? most[query] : from_most[query];
    const float keep = exp2_one(most[query] - next);
    const float add = exp2_one(from_most[query] - next);
    for (int64_t i = query * dim; i < (query + 1) * dim; i += kWidth)
      store(into + i, fma(load(from + i), set1(add), load(into + i) * set1(keep)));
    weight[query] = weight[query] * keep + from_weight[query] * add;
    most[query] = next;
  }
}

OMNI_FN static void finish(const Attention& problem, const AttentionTile& tile,
                           const float* state) {
  const int64_t dim = problem.dim, group = problem.group();
  const int64_t queries = tile.rows * group;
  const float* weight = state + queries * dim + queries;
  for (int64_t query = 0; query < queries; ++query) {
    const int64_t row = tile.first_row + query / group;
    float* to =
        problem.out + (row * problem.heads + tile.kv_head * group + query % group) * dim;
    const V inverse = set1(1.0f / weight[query]);
    for (int64_t i = 0; i < dim; i += kWidth)
      store(to + i, load(state + query * dim + i) * inverse);
  }
}

}  // namespace OMNI_WIDTH_NAMESPACE
}  // namespace omni
