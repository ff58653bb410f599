// Row-wise operations over a whole matrix; rows are spread over threads when there are many.
#include <algorithm>

#include "../isa.h"
#include "../pool.h"
#include "rowwise.h"

namespace omni {
namespace {

// Elements per chunk: about 5 us of work.
constexpr int64_t kChunk = 16 * 1024;

template <class F>
void for_rows(int64_t rows, int64_t columns, F row) {
  const int64_t height = std::max<int64_t>(1, kChunk / std::max<int64_t>(1, columns));
  auto work = [&](int64_t index) {
    const int64_t end = std::min(rows, (index + 1) * height);
    for (int64_t r = index * height; r < end; ++r) row(r);
  };
  const int64_t chunks = (rows + height - 1) / height;
  if (chunks > 2)
    parallel_for(chunks, work);
  else
    for (int64_t i = 0; i < chunks; ++i) work(i);
}

}  // namespace

const RowwisePath& rowwise() {
#if OMNI_X86
  if (isa() == kAvx512Vnni) return kRowwise512;
  if (isa() == kAvx2) return kRowwise256;
#endif
  return kRowwise128;
}

}  // namespace omni

// All matrices are fp32, row-major and contiguous.
extern "C" {

// x, out [rows, columns], weight [columns].
void omni_rms_norm(const float* x, const float* weight, int64_t rows, int64_t columns, float eps,
                   float* out) {
  const auto& use = omni::rowwise();
  omni::for_rows(rows, columns, [&](int64_t r) {
    use.rms_norm(x + r * columns, weight, columns, eps, out + r * columns);
  });
}

// x, out [rows, columns], weight and bias [columns].
void omni_layer_norm(const float* x, const float* weight, const float* bias, int64_t rows,
                     int64_t columns, float eps, float* out) {
  const auto& use = omni::rowwise();
  omni::for_rows(rows, columns, [&](int64_t r) {
    use.layer_norm(x + r * columns, weight, bias, columns, eps, out + r * columns);
  });
}

// gate_up [rows, 2 * columns], out [rows, columns].
void omni_silu_mul(const float* gate_up, int64_t rows, int64_t columns, float* out) {
  const auto& use = omni::rowwise();
  omni::for_rows(rows, columns, [&](int64_t r) {
    use.silu_mul(gate_up + r * 2 * columns, columns, out + r * columns);
  });
}

// x [rows, columns] *= sigmoid(gate), whose rows are `stride` apart.
void omni_sigmoid_mul(float* x, const float* gate, int64_t rows, int64_t columns, int64_t stride) {
  const auto& use = omni::rowwise();
  omni::for_rows(rows, columns, [&](int64_t r) {
    use.sigmoid_mul(x + r * columns, gate + r * stride, columns);
  });
}

// qkv [rows, heads + 2 * kv_heads, dim], rows `stride` apart: normalises queries and keys per head
// by q_norm and k_norm [dim] unless these are null, rotates the first 2 * half of each in place by
// cosine and sine [rows, half], then copies keys and values to token `slots[row]` of k and v
// [tokens, kv_heads, dim]. Returns 0, or -1 having done nothing when a slot is out of range.
int omni_norm_rotate_and_store(float* qkv, int64_t rows, int64_t stride, int64_t heads,
                               int64_t kv_heads, int64_t dim, int64_t half, const float* q_norm,
                               const float* k_norm, float eps, const float* cosine,
                               const float* sine, const int64_t* slots, int64_t tokens, float* k,
                               float* v) {
  for (int64_t r = 0; r < rows; ++r)
    if (slots[r] < 0 || slots[r] >= tokens) return -1;
  const auto& use = omni::rowwise();
  const int64_t width = (heads + 2 * kv_heads) * dim, token = kv_heads * dim;
  omni::for_rows(rows, width, [&](int64_t r) {
    float* row = qkv + r * stride;
    if (q_norm != nullptr)
      for (int64_t h = 0; h < heads + kv_heads; ++h) {
        float* head = row + h * dim;
        use.rms_norm(head, h < heads ? q_norm : k_norm, dim, eps, head);
      }
    use.rotate(row, heads + kv_heads, dim, half, cosine + r * half, sine + r * half);
    const float* key = row + heads * dim;
    std::copy_n(key, token, k + slots[r] * token);
    std::copy_n(key + token, token, v + slots[r] * token);
  });
  return 0;
}
}
