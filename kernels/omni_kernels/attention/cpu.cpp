// Causal attention over pages: cuts the work into tiles and segments and merges them in order.
#include <algorithm>
#include <memory>
#include <vector>

#include "../isa.h"
#include "../pool.h"
#include "attention.h"

namespace omni {
namespace {

// Below this many multiply-adds one thread is done before another has woken up.
constexpr int64_t kParallelWork = 100 * 1000;
// Floats of one token that one thread reads: enough for long reads, and two blocks of keys and
// values, this one and the next, stay in a second-level cache.
constexpr int64_t kTogetherFloats = 512;
// Several, so that a thread that is late leaves work to the others; few, because the beginning of
// a part is not fetched ahead.
constexpr int64_t kPartsPerThread = 4;
constexpr int64_t kLeastSegments = 2;  // of a part, if there is one for each thread

// The widest path whose vectors divide the head dimension; null when none does.
const AttentionPath* path(int64_t dim) {
#if OMNI_X86
  if (isa() == kAvx512Vnni && dim % kAttention512.width == 0) return &kAttention512;
  if (isa() >= kAvx2 && dim % kAttention256.width == 0) return &kAttention256;
#endif
  return dim % kAttention128.width == 0 ? &kAttention128 : nullptr;
}

// Key heads of a tile with so many queries for each.
int64_t heads_together(const Attention& problem, int64_t queries) {
  if (queries > kFewQueries) return 1;
  return std::clamp<int64_t>(std::min(kTileQueries / queries, kTogetherFloats / problem.dim), 1,
                             problem.kv_heads);
}

std::vector<AttentionTile> cut(const Attention& problem, int64_t sequences) {
  const int64_t height = std::max<int64_t>(1, kTileQueries / problem.group());
  std::vector<AttentionTile> tiles;
  for (int64_t b = 0; b < sequences; ++b)
    for (int64_t row = problem.cu_seqlens[b]; row < problem.cu_seqlens[b + 1]; row += height) {
      const int64_t rows = std::min(height, problem.cu_seqlens[b + 1] - row);
      const int64_t together = heads_together(problem, rows * problem.group());
      for (int64_t head = 0; head < problem.kv_heads; head += together)
        tiles.push_back({b, row, rows, head, std::min(together, problem.kv_heads - head),
                         problem.num_computed[b] + row - problem.cu_seqlens[b]});
    }
  // Longest first, so that no thread begins a long tile when the others are done.
  std::stable_sort(tiles.begin(), tiles.end(), [](const auto& a, const auto& b) {
    return a.position + a.rows > b.position + b.rows;
  });
  return tiles;
}

int64_t num_segments(const AttentionTile& tile) {
  return (tile.position + tile.rows + kSegmentKeys - 1) / kSegmentKeys;
}

// Helpers live as long as the process, so the scratch is made once per thread.
AttentionBuffers& buffers() {
  static thread_local std::unique_ptr<AttentionBuffers> mine;
  if (!mine) mine.reset(new AttentionBuffers);
  return *mine;
}

std::unique_ptr<float[]> uninitialised(int64_t count) {
  return std::unique_ptr<float[]>(new float[static_cast<size_t>(count)]);
}

}  // namespace

void attend(const Attention& problem, const AttentionPath& use, int64_t sequences) {
  const std::vector<AttentionTile> tiles = cut(problem, sequences);
  int64_t work = 0, pieces = 0, queries = 0;
  for (const AttentionTile& tile : tiles) {
    work += tile.queries(problem) * (tile.position + tile.rows) * problem.dim * 2;
    pieces += num_segments(tile);
    queries = std::max(queries, tile.queries(problem));
  }
  const int64_t state = queries * (problem.dim + 2);
  const int64_t count = static_cast<int64_t>(tiles.size());

  // Whether segments run one after another or at once, their arithmetic and the order in which
  // they are merged are the same.
  if (work >= kParallelWork && pieces > count && count < 4 * num_threads()) {
    struct Part {  // some segments of a tile
      int64_t tile, first, last, state;
    };
    const int64_t share = (pieces + num_threads() - 1) / num_threads();
    const int64_t longest = std::max((share + kPartsPerThread - 1) / kPartsPerThread,
                                     std::min(share, kLeastSegments));
    std::vector<Part> parts;
    std::vector<int64_t> first_state;
    for (int64_t t = 0, made = 0; t < count; made += num_segments(tiles[t]), ++t) {
      first_state.push_back(made);
      for (int64_t s = 0, n = num_segments(tiles[t]); s < n; s += longest)
        parts.push_back({t, s, std::min(s + longest, n), made + s});
    }
    const auto states = uninitialised(pieces * state);
    auto compute = [&](int64_t i) {
      const Part& part = parts[i];
      for (int64_t s = part.first; s < part.last; ++s)
        use.segment(problem, tiles[part.tile], s, part.first, part.last, buffers(),
                    states.get() + (part.state + s - part.first) * state);
    };
    parallel_for(static_cast<int64_t>(parts.size()), compute);
    for (int64_t t = 0; t < count; ++t) {
      float* into = states.get() + first_state[t] * state;
      for (int64_t s = 1; s < num_segments(tiles[t]); ++s)
        use.merge(problem, tiles[t].queries(problem), into, into + s * state);
      use.finish(problem, tiles[t], into);
    }
    return;
  }

  auto compute = [&](int64_t i) {
    const AttentionTile& tile = tiles[i];
    const int64_t segments = num_segments(tile);
    const auto states = uninitialised(segments > 1 ? 2 * state : state);
    use.segment(problem, tile, 0, 0, segments, buffers(), states.get());
    for (int64_t s = 1; s < segments; ++s) {
      use.segment(problem, tile, s, 0, segments, buffers(), states.get() + state);
      use.merge(problem, tile.queries(problem), states.get(), states.get() + state);
    }
    use.finish(problem, tile, states.get());
  };
  if (work < kParallelWork)
    for (int64_t i = 0; i < count; ++i) compute(i);
  else
    parallel_for(count, compute);
}

}  // namespace omni

// Arguments as in attention.h; returns 0, or -1 when this library cannot do the shape.
extern "C" int omni_paged_attention(const float* q, int64_t q_stride, const float* k, const float* v, float* out,
                                    const int64_t* cu_seqlens, const int64_t* num_computed,
                                    const int64_t* pages, const int64_t* page_offsets,
                                    int64_t sequences, int64_t page_tokens, int64_t heads,
                                    int64_t kv_heads, int64_t dim, float scale) {
  const omni::AttentionPath* use = omni::path(dim);
  if (!use || dim > omni::kMaxHeadDim || heads / kv_heads > omni::kTileQueries) return -1;
  const omni::Attention problem = {q, q_stride,  k,           v,     out,      num_computed, cu_seqlens,
                                   pages, page_offsets, page_tokens, heads, kv_heads, dim, scale};
  omni::attend(problem, *use, sequences);
  return 0;
}
