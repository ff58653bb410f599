// Operations on each row by itself: norms and the gated activation. See reference.py.
#pragma once

#include <cstdint>

namespace omni {

struct RowwisePath {
  // One row each; `columns` is the width of `out`. Input and output may be the same row, except
  // for silu_mul, whose input is twice as wide.
  void (*rms_norm)(const float* x, const float* weight, int64_t columns, float eps, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t columns,
                     float eps, float* out);
  void (*silu_mul)(const float* gate_up, int64_t columns, float* out);
  // x *= 1 / (1 + e^-gate).
  void (*sigmoid_mul)(float* x, const float* gate, int64_t columns);
  // Turn pairs (i, i + half) of `heads` heads of width `dim` by the row's angles, in place; what
  // is beyond 2 * half stays.
  void (*rotate)(float* x, int64_t heads, int64_t dim, int64_t half, const float* cosine,
                 const float* sine);
};

extern const RowwisePath kRowwise128;
#if defined(__x86_64__)
extern const RowwisePath kRowwise256;
extern const RowwisePath kRowwise512;
#endif

const RowwisePath& rowwise();

}  // namespace omni
