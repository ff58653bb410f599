// The inner loops of paged attention, written once for every vector width.
//
// Scores are vectors along keys: the keys of a block are transposed into a buffer that all queries
// of the tile share, so one (query, key) dot product is one chain of multiply-adds over the
// dimension, however many queries there are. A row's result is the same bits alone or in a batch.
//
// Few queries wait for memory: their keys are transposed in registers, the tile has several key
// heads, so that whole tokens are read, and the next block is fetched at the arithmetic's pace.
#include <cmath>
#include <limits>
#include <utility>

#include "../simd.h"
#include "attention.h"

namespace omni {
namespace OMNI_WIDTH_NAMESPACE {

// 4 x 4 accumulators of 32 registers, or 4 x 2 of 16: enough to hide the latency of an addition.
constexpr int kRowsAtOnce = 4;  // the switches below name its remainders
constexpr int kVectors = kWidth == 16 ? 4 : 2;
static_assert(kBlockKeys % (kWidth * kVectors) == 0, "a block is whole strips of vectors");
// Vectors of up to 8 queries at once: for 9 accumulators or 18 beside the keys.
constexpr int kFewVectors = kWidth == 8 ? 1 : 2;
// Floats from token to token from which on 32 keys are too many for the few places of a
// first-level cache that their lines compete for.
constexpr int64_t kFarApartFloats = 512;

// Rows to be fetched, a few floats for each step of the arithmetic.
struct Ahead {
  const float* const* row;
  const float* const* last;
  int64_t floats;  // of one row
  int64_t at = 0;
  int due = 0;  // floats of a line not yet fetched
  const float* const* also = nullptr;  // rows as many and as long, fetched at the same time
};

template <int FLOATS>
OMNI_INLINE void fetch(Ahead& ahead) {
  if (ahead.row == ahead.last) return;
  int lines = FLOATS / kLineFloats;
  if (FLOATS % kLineFloats) {
    ahead.due += FLOATS;
    lines = ahead.due / kLineFloats;
    ahead.due %= kLineFloats;
  }
  for (int i = 0; i < lines; ++i) {
    __builtin_prefetch(*ahead.row + ahead.at);
    if (ahead.also) __builtin_prefetch(*ahead.also + ahead.at);
    ahead.at += kLineFloats;
    if (ahead.at < ahead.floats) continue;
    ahead.at = 0;
    if (ahead.also) ++ahead.also;
    if (++ahead.row == ahead.last) return;
  }
}

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

// As transpose and score for ROWS queries of each of `heads` key heads: chains in the same order,
// so the same bits, but the turned keys stay in registers.
template <int ROWS, int VECTORS>
OMNI_FN static void score_few(const float* q, int64_t heads, int64_t dim, const float* const* rows,
                              Ahead& ahead, float* scores) {
  for (int first = 0; first < kBlockKeys; first += kWidth * VECTORS)
    for (int64_t head = 0; head < heads; ++head) {
      const float* query = q + head * ROWS * dim;
      V acc[ROWS][VECTORS];
      for (int r = 0; r < ROWS; ++r)
        for (int i = 0; i < VECTORS; ++i) acc[r][i] = set1(0.0f);
      for (int64_t d = 0; d < dim; d += 4) {
        fetch<4 * kWidth * VECTORS>(ahead);
        V key[VECTORS][4];
        for (int i = 0; i < VECTORS; ++i) {
          for (int c = 0; c < 4; ++c)
            key[i][c] = load_lanes(rows + first + i * kWidth + c, head * dim + d);
          transpose4(key[i][0], key[i][1], key[i][2], key[i][3]);
        }
        for (int c = 0; c < 4; ++c)
          for (int r = 0; r < ROWS; ++r) {
            const V value = set1(query[r * dim + d + c]);
            for (int i = 0; i < VECTORS; ++i) acc[r][i] = fma(value, key[i][c], acc[r][i]);
          }
      }
      for (int r = 0; r < ROWS; ++r)
        for (int i = 0; i < VECTORS; ++i)
          store(scores + (head * ROWS + r) * kBlockKeys + first + i * kWidth, acc[r][i]);
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

// o = o * decay + p V for ROWS queries and VECTORS vectors of the dimension, which are at
// `at` in o and `offset` floats behind `rows`.
template <int ROWS, int VECTORS>
OMNI_FN static void weigh(const float* p, const float* decay, const float* const* rows,
                          int64_t offset, Ahead& ahead, int count, int64_t dim, int64_t at,
                          float* o) {
  V acc[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECTORS; ++i)
      acc[r][i] = load(o + r * dim + at + i * kWidth) * set1(decay[r]);
  for (int j = 0; j < count; ++j) {
    const float* row = rows[j] + offset;
    fetch<VECTORS * kWidth>(ahead);
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

// Keys that lie far apart are taken 16 at a time: more of their lines would push each other out.
template <int ROWS>
OMNI_FN static void score_rows_of_few(AttentionBuffers& buffers, const Attention& problem,
                                      int64_t heads, const float* const* rows, Ahead& ahead) {
  if (problem.kv_heads * problem.dim < kFarApartFloats)
    score_few<ROWS, kFewVectors>(buffers.q, heads, problem.dim, rows, ahead, buffers.scores);
  else
    score_few<ROWS, 1>(buffers.q, heads, problem.dim, rows, ahead, buffers.scores);
}

// `each` queries of each of `heads` key heads.
OMNI_FN static void score_tile_of_few(AttentionBuffers& buffers, const Attention& problem,
                                      int64_t heads, int64_t each, const float* const* rows,
                                      Ahead& ahead) {
  switch (each) {
    case 1: score_rows_of_few<1>(buffers, problem, heads, rows, ahead); break;
    case 2: score_rows_of_few<2>(buffers, problem, heads, rows, ahead); break;
    case 3: score_rows_of_few<3>(buffers, problem, heads, rows, ahead); break;
    case 4: score_rows_of_few<4>(buffers, problem, heads, rows, ahead); break;
    case 5: score_rows_of_few<5>(buffers, problem, heads, rows, ahead); break;
    case 6: score_rows_of_few<6>(buffers, problem, heads, rows, ahead); break;
    case 7: score_rows_of_few<7>(buffers, problem, heads, rows, ahead); break;
    default: score_rows_of_few<8>(buffers, problem, heads, rows, ahead); break;
  }
}

template <int ROWS>
OMNI_FN static void score_rows(AttentionBuffers& buffers, int64_t query, int64_t dim) {
  score<ROWS>(buffers.q + query * dim, dim, buffers.keys, buffers.scores + query * kBlockKeys);
}

OMNI_FN static void score_tile(AttentionBuffers& buffers, int64_t queries, int64_t dim,
                               const float* const* rows, const float* const* values) {
  transpose(rows, values, dim, buffers.keys);
  for (int64_t query = 0; query < queries; query += kRowsAtOnce)
    switch (queries - query) {
      case 1: score_rows<1>(buffers, query, dim); break;
      case 2: score_rows<2>(buffers, query, dim); break;
      case 3: score_rows<3>(buffers, query, dim); break;
      default: score_rows<4>(buffers, query, dim); break;
    }
}

// Queries from `query` on of key head `head`, counted from the tile's first.
template <int ROWS, int VECTORS = kVectors>
OMNI_FN static void weigh_rows(AttentionBuffers& buffers, int64_t query, int64_t head,
                               const float* const* rows, Ahead& ahead, int count, int64_t dim,
                               float* state) {
  const float* p = buffers.scores + query * kBlockKeys;
  const float* decay = buffers.decay + query;
  float* o = state + query * dim;
  int64_t at = 0;
  for (; at + kWidth * VECTORS <= dim; at += kWidth * VECTORS)
    weigh<ROWS, VECTORS>(p, decay, rows, head * dim + at, ahead, count, dim, at, o);
  for (; at < dim; at += kWidth)
    weigh<ROWS, 1>(p, decay, rows, head * dim + at, ahead, count, dim, at, o);
}

OMNI_FN static void weigh_tile_of_few(AttentionBuffers& buffers, int64_t heads, int64_t each,
                                      const float* const* rows, Ahead& ahead, int n, int64_t dim,
                                      float* o) {
  constexpr int kFew = kFewVectors;  // more rows leave fewer registers
  for (int64_t head = 0, at = 0; head < heads; ++head, at += each)
    switch (each) {
      case 1: weigh_rows<1>(buffers, at, head, rows, ahead, n, dim, o); break;
      case 2: weigh_rows<2>(buffers, at, head, rows, ahead, n, dim, o); break;
      case 3: weigh_rows<3>(buffers, at, head, rows, ahead, n, dim, o); break;
      case 4: weigh_rows<4>(buffers, at, head, rows, ahead, n, dim, o); break;
      case 5: weigh_rows<5, kFew>(buffers, at, head, rows, ahead, n, dim, o); break;
      case 6: weigh_rows<6, kFew>(buffers, at, head, rows, ahead, n, dim, o); break;
      case 7: weigh_rows<7, kFew>(buffers, at, head, rows, ahead, n, dim, o); break;
      default: weigh_rows<8, kFew>(buffers, at, head, rows, ahead, n, dim, o); break;
    }
}

OMNI_FN static void weigh_tile(AttentionBuffers& buffers, int64_t queries,
                               const float* const* rows, Ahead& ahead, int n, int64_t dim,
                               float* o) {
  for (int64_t at = 0; at < queries; at += kRowsAtOnce)
    switch (queries - at) {
      case 1: weigh_rows<1>(buffers, at, 0, rows, ahead, n, dim, o); break;
      case 2: weigh_rows<2>(buffers, at, 0, rows, ahead, n, dim, o); break;
      case 3: weigh_rows<3>(buffers, at, 0, rows, ahead, n, dim, o); break;
      default: weigh_rows<4>(buffers, at, 0, rows, ahead, n, dim, o); break;
    }
}

// Find the rows of the keys `first` .. `first + count - 1`; the last one fills the block, where
// scores are masked and values unused.
OMNI_FN static void locate(const Attention& problem, const AttentionTile& tile, int64_t first,
                           int64_t count, BlockRows& rows) {
  const int64_t* pages = problem.pages + problem.page_offsets[tile.sequence];
  const int64_t token = problem.kv_heads * problem.dim;
  int64_t page = first / problem.page_tokens, inside = first % problem.page_tokens;
  int64_t j = 0;
  for (; j < count; ++page, inside = 0) {
    int64_t offset =
        (pages[page] * problem.page_tokens + inside) * token + tile.kv_head * problem.dim;
    for (; inside < problem.page_tokens && j < count; ++inside, ++j, offset += token) {
      rows.keys[j] = problem.k + offset;
      rows.values[j] = problem.v + offset;
    }
  }
  for (; j < kBlockKeys; ++j) {
    rows.keys[j] = rows.keys[count - 1];
    rows.values[j] = rows.values[count - 1];
  }
}

OMNI_INLINE int64_t block_count(int64_t end, int64_t first) {
  return end - first < kBlockKeys ? end - first : kBlockKeys;
}

OMNI_FN static void segment(const Attention& problem, const AttentionTile& tile, int64_t number,
                            int64_t part_first, int64_t part_last, AttentionBuffers& buffers,
                            float* state) {
  const int64_t dim = problem.dim, group = problem.group();
  const int64_t each = tile.rows * group, queries = tile.kv_heads * each;
  float* most = state + queries * dim;
  float* weight = most + queries;

  // Scores in powers of two: exp(s) = 2^(s log2 e).
  const float factor = problem.scale * 1.44269504f;
  float* to = buffers.q;
  for (int64_t head = tile.kv_head; head < tile.kv_head + tile.kv_heads; ++head)
    for (int64_t row = 0; row < tile.rows; ++row, to += group * dim) {
      const float* from =
          problem.q + (tile.first_row + row) * problem.q_stride + head * group * dim;
      for (int64_t i = 0; i < group * dim; i += kWidth)
        store(to + i, load(from + i) * set1(factor));
    }
  for (int64_t i = 0; i < queries * dim; i += kWidth) store(state + i, set1(0.0f));
  for (int64_t i = 0; i < queries; ++i) {
    most[i] = -std::numeric_limits<float>::infinity();
    weight[i] = 0.0f;
  }

  const int64_t all = tile.position + tile.rows;
  const int64_t end = all < (number + 1) * kSegmentKeys ? all : (number + 1) * kSegmentKeys;
  const int64_t fetched = all < part_last * kSegmentKeys ? all : part_last * kSegmentKeys;
  int64_t first = number * kSegmentKeys;
  BlockRows* now = buffers.rows;
  BlockRows* next = buffers.rows + 1;
  locate(problem, tile, first, block_count(end, first), *now);
  for (; first < end; first += kBlockKeys, std::swap(now, next)) {
    const int count = static_cast<int>(block_count(end, first));
    const int64_t following = first + kBlockKeys;
    const int64_t count_ahead = following < fetched ? block_count(fetched, following) : 0;
    if (count_ahead > 0) locate(problem, tile, following, count_ahead, *next);
    Ahead next_keys = {next->keys, next->keys + count_ahead, tile.kv_heads * dim};
    Ahead next_values = {next->values, next->values + count_ahead, tile.kv_heads * dim};
    if (first == part_first * kSegmentKeys) next_keys.also = now->values;  // not fetched yet
    const float* const* keys = now->keys;
    const float* const* values = now->values;

    if (each <= kFewQueries)
      score_tile_of_few(buffers, problem, tile.kv_heads, each, keys, next_keys);
    else
      score_tile(buffers, queries, dim, keys, values);
    for (int64_t query = 0; query < queries; ++query)
      soften(buffers.scores + query * kBlockKeys,
             tile.position + query % each / group - first + 1, most[query], weight[query],
             buffers.decay[query]);
    if (each <= kFewQueries)
      weigh_tile_of_few(buffers, tile.kv_heads, each, values, next_values, count, dim, state);
    else
      weigh_tile(buffers, queries, values, next_keys, count, dim, state);
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
  const int64_t each = tile.rows * group, queries = tile.kv_heads * each;
  const float* weight = state + queries * dim + queries;
  for (int64_t query = 0; query < queries; ++query) {
    const int64_t row = tile.first_row + query % each / group;
    const int64_t head = (tile.kv_head + query / each) * group + query % group;
    float* to = problem.out + (row * problem.heads + head) * dim;
    const V inverse = set1(1.0f / weight[query]);
    for (int64_t i = 0; i < dim; i += kWidth)
      store(to + i, load(state + query * dim + i) * inverse);
  }
}

}  // namespace OMNI_WIDTH_NAMESPACE
}  // namespace omni
