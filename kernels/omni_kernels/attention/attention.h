// Causal attention over paged keys and values; see reference.py for what it computes.
#pragma once

#include <cstdint>

namespace omni {

constexpr int kBlockKeys = 64;      // keys scored at once, at multiples of 64
constexpr int kSegmentKeys = 256;   // keys of one partial result, at multiples of 256
constexpr int kTileQueries = 32;    // queries (rows x heads of one key head) computed together
constexpr int kFewQueries = 8;      // up to so many, reading costs more than arithmetic
constexpr int kMaxHeadDim = 512;
constexpr int kLineFloats = 16;     // of a cache line

struct Attention {
  const float* q;                // [N, heads, dim], rows q_stride apart
  int64_t q_stride;
  const float* k;                // [P, page_tokens, kv_heads, dim]
  const float* v;                // as k
  float* out;                    // [N, heads, dim]
  const int64_t* num_computed;   // [B]
  const int64_t* cu_seqlens;     // [B + 1]
  const int64_t* pages;          // page ids of all sequences, end to end
  const int64_t* page_offsets;   // [B + 1] into pages
  int64_t page_tokens;
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;
  float scale;

  int64_t group() const { return heads / kv_heads; }  // query heads of one key head
};

// Some rows of one sequence and one key head; with few queries, of several key heads, because
// their keys lie side by side in memory.
struct AttentionTile {
  int64_t sequence;
  int64_t first_row;  // in N
  int64_t rows;
  int64_t kv_head;
  int64_t kv_heads;  // from kv_head on
  int64_t position;  // of first_row in its sequence

  int64_t queries(const Attention& problem) const { return kv_heads * rows * problem.group(); }
};

struct BlockRows {
  const float* keys[kBlockKeys];
  const float* values[kBlockKeys];
};

// Scratch of one thread.
struct alignas(64) AttentionBuffers {
  float q[kTileQueries * kMaxHeadDim];
  float keys[kMaxHeadDim * kBlockKeys];     // [dim, kBlockKeys]
  float scores[kTileQueries * kBlockKeys];  // then probabilities
  float decay[kTileQueries];
  BlockRows rows[2];  // this block and the next
};

// A partial result: [queries, dim] weighted values, then the maximum and the weight of each
// query; query = (key head * rows + row) * group + head. dim is a whole number of the path's
// vectors.
// segment() belongs to a thread's part, the segments from part_first on, before part_last: what is
// to be fetched ahead.
struct AttentionPath {
  int width;
  void (*segment)(const Attention& problem, const AttentionTile& tile, int64_t segment,
                  int64_t part_first, int64_t part_last, AttentionBuffers& buffers, float* state);
  void (*merge)(const Attention& problem, int64_t queries, float* into, const float* from);
  void (*finish)(const Attention& problem, const AttentionTile& tile, const float* state);
};

extern const AttentionPath kAttention128;
#if defined(__x86_64__)
extern const AttentionPath kAttention256;
extern const AttentionPath kAttention512;
#endif

}  // namespace omni
