// Gated DeltaNet between its two projections; see reference.py for what it computes.
#pragma once

#include <cstdint>

namespace omni {

constexpr int kDeltaRows = 4;     // rows of the state whose sums are made together
constexpr int kDeltaBlock = 32;   // rows of the state that stay in the first-level cache
constexpr int kDeltaTokens = 32;  // tokens prepared at once; a cut changes no bit
constexpr int kMaxDeltaDim = 256;
constexpr int kMaxTaps = 8;

// One layer's weights, as op.py lays them out for ctypes. H key heads, HV value heads of which
// HV / H read one key head, K and V head widths, C = 2 H K + HV V channels, W taps.
struct DeltaLayer {
  int64_t key_heads, value_heads, key_dim, value_dim, num_taps;
  const float* taps;     // [W, C]
  const float* rate;     // [HV] exp(a_log)
  const float* dt_bias;  // [HV]
  const float* norm;     // [V]
  float eps;

  int64_t channels() const { return 2 * key_heads * key_dim + value_heads * value_dim; }
  int64_t group() const { return value_heads / key_heads; }  // value heads of one key head
};

// The new tokens of one sequence.
struct DeltaRun {
  const float* x;  // [tokens, C + 2 HV (+ HV V)], rows x_stride apart: qkv | b | a (| z)
  int64_t x_stride;
  int64_t tokens;
  float* recurrent;  // [HV, V, K], advanced
  float* conv;       // [W - 1, C], advanced
  float* journal;    // [tokens, C + 2 HV], rows journal_stride apart, or null
  int64_t journal_stride;
  float* out;  // [tokens, HV V]; null: only the state is wanted
};

// Scratch of one thread: what the tokens of a tile have in common for all rows of a head's state.
struct alignas(64) DeltaBuffers {
  float q[kDeltaTokens * kMaxDeltaDim];  // [tokens, K], of unit length / sqrt(K)
  float k[kDeltaTokens * kMaxDeltaDim];  // [tokens, K], of unit length
  float v[kDeltaTokens * kMaxDeltaDim];  // [tokens, V]
  float o[kDeltaTokens * kMaxDeltaDim];  // [tokens, V]
  float kq[kDeltaTokens];                // k . q
  float beta[kDeltaTokens];
  float decay[kDeltaTokens];  // e^g
};

struct DeltaPath {
  int width;  // of a vector; divides K and V
  // All that belongs to one key head: its value heads' outputs and state, its channels of the
  // convolution and the journal.
  void (*head)(const DeltaLayer& layer, const DeltaRun& run, int64_t key_head,
               DeltaBuffers& buffers);
};

extern const DeltaPath kDelta128;
#if defined(__x86_64__)
extern const DeltaPath kDelta256;
extern const DeltaPath kDelta512;
#endif

}  // namespace omni
