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

constexpr int kRowsAtOnce = kWidth == 16 ? 4 : 2;  // 4 x 4 (2 x 4) accumulators stay in registers
constexpr int kVectors = 4;
static_assert(kBlockKeys % (kWidth * kVectors) == 0, "a block is whole strips of vectors");

OMNI_FN static void transpose(const float* const* rows, int64_t dim, float* keys) {
  for (int first = 0; first < kBlockKeys; first += kWidth)
    for (int64_t d = 0; d < dim; d += 4) {
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

// o = o * decay + p V for ROWS queries and VECTORS vectors of the dimension.
template <int ROWS, int VECTORS>
OMNI_FN static void weigh(const float* p, const float* decay, const float* const* rows, int count,
                          int64_t dim, int64_t at, float* o) {
  V acc[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECTORS; ++i)
      acc[r][i] = load(o + r * dim + at + i * kWidth) * set1(decay[r]);
  for (int j = 0; j < count; ++j) {
    const float* row = rows[j] + at;
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

template <int ROWS>
OMNI_FN static void weigh_all(const float* p, const float* decay, const float* const* rows,
                              int count, int64_t dim, float* o) {
  int64_t at = 0;
  for (; at + kWidth * kVectors <= dim; at += kWidth * kVectors)
    weigh<ROWS, kVectors>(p, decay, rows, count, dim, at, o);
  for (; at < dim; at += kWidth) weigh<ROWS, 1>(p, decay, rows, count, dim, at, o);
}

// Turn one query's scores into weights, of which only the first `valid` keys are allowed.
OMNI_FN static void soften(float* scores, int64_t valid, float& most, float& weight,
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
  score<ROWS>(buffers.q + query * dim, dim, buffers.keys,
              buffers.scores + query * kBlockKeys);
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

  const int64_t* pages = problem.pages + problem.page_offsets[tile.sequence];
  const int64_t token = problem.kv_heads * dim;
  const int64_t all = tile.position + tile.rows;
  const int64_t end = all < (number + 1) * kSegmentKeys ? all : (number + 1) * kSegmentKeys;
  for (int64_t first = number * kSegmentKeys; first < end; first += kBlockKeys) {
    const int count = static_cast<int>(end - first < kBlockKeys ? end - first : kBlockKeys);
    for (int j = 0; j < kBlockKeys; ++j) {
      // Beyond the last key its row is repeated: its scores are masked, its weights unused.
      const int64_t at = first + (j < count ? j : count - 1);
      const int64_t row = pages[at / problem.page_tokens] * problem.page_tokens +
                          at % problem.page_tokens;
      const int64_t offset = row * token + tile.kv_head * dim;
      buffers.key_rows[j] = problem.k + offset;
      buffers.value_rows[j] = problem.v + offset;
    }
    transpose(buffers.key_rows, dim, buffers.keys);
    int64_t query = 0;
    for (; query + kRowsAtOnce <= queries; query += kRowsAtOnce)
      score_tile<kRowsAtOnce>(buffers, query, dim);
    for (; query < queries; ++query) score_tile<1>(buffers, query, dim);
    for (query = 0; query < queries; ++query)
      soften(buffers.scores + query * kBlockKeys, tile.position + query / group - first + 1,
             most[query], weight[query], buffers.decay[query]);
    for (query = 0; query + kRowsAtOnce <= queries; query += kRowsAtOnce)
      weigh_all<kRowsAtOnce>(buffers.scores + query * kBlockKeys, buffers.decay + query,
                             buffers.value_rows, count, dim, state + query * dim);
    for (; query < queries; ++query)
      weigh_all<1>(buffers.scores + query * kBlockKeys, buffers.decay + query, buffers.value_rows,
                   count, dim, state + query * dim);
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
