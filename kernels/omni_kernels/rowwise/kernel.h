// The loops of the row-wise operations, written once for every vector width.
#include <cmath>

#include "../simd.h"
#include "rowwise.h"

namespace omni {
namespace OMNI_WIDTH_NAMESPACE {

OMNI_FN static float sum_of_squares(const float* x, int64_t columns, float centre) {
  const V middle = set1(centre);
  V a = set1(0.0f), b = set1(0.0f);
  int64_t i = 0;
  for (; i + 2 * kWidth <= columns; i += 2 * kWidth) {
    const V first = load(x + i) - middle, second = load(x + i + kWidth) - middle;
    a = fma(first, first, a);
    b = fma(second, second, b);
  }
  float sum = hsum(a + b);
  for (; i < columns; ++i) sum += (x[i] - centre) * (x[i] - centre);
  return sum;
}

OMNI_FN static float sum_of(const float* x, int64_t columns) {
  V a = set1(0.0f), b = set1(0.0f);
  int64_t i = 0;
  for (; i + 2 * kWidth <= columns; i += 2 * kWidth) {
    a = a + load(x + i);
    b = b + load(x + i + kWidth);
  }
  float sum = hsum(a + b);
  for (; i < columns; ++i) sum += x[i];
  return sum;
}

OMNI_FN static void rms_norm(const float* x, const float* weight, int64_t columns, float eps,
                             float* out) {
  const float mean = sum_of_squares(x, columns, 0.0f) / static_cast<float>(columns);
  const float factor = 1.0f / std::sqrt(mean + eps);
  const V scale = set1(factor);
  int64_t i = 0;
  for (; i + kWidth <= columns; i += kWidth)
    store(out + i, load(x + i) * scale * load(weight + i));
  for (; i < columns; ++i) out[i] = x[i] * factor * weight[i];
}

OMNI_FN static void layer_norm(const float* x, const float* weight, const float* bias,
                               int64_t columns, float eps, float* out) {
  const float count = static_cast<float>(columns);
  const float mean = sum_of(x, columns) / count;
  const float factor = 1.0f / std::sqrt(sum_of_squares(x, columns, mean) / count + eps);
  const V middle = set1(mean), scale = set1(factor);
  int64_t i = 0;
  for (; i + kWidth <= columns; i += kWidth)
    store(out + i, (load(x + i) - middle) * scale * load(weight + i) + load(bias + i));
  for (; i < columns; ++i) out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

// x / (1 + e^-gate)
OMNI_INLINE V gated(V x, V gate) {
  return x / (set1(1.0f) + exp2(gate * set1(-1.44269504f)));
}

OMNI_FN static void silu_mul(const float* gate_up, int64_t columns, float* out) {
  const float* up = gate_up + columns;
  int64_t i = 0;
  for (; i + kWidth <= columns; i += kWidth)
    store(out + i, gated(load(gate_up + i), load(gate_up + i)) * load(up + i));
  if (i < columns) {
    const int left = static_cast<int>(columns - i);
    const V gate = load_first(gate_up + i, left);
    store_first(out + i, gated(gate, gate) * load_first(up + i, left), left);
  }
}

OMNI_FN static void sigmoid_mul(float* x, const float* gate, int64_t columns) {
  int64_t i = 0;
  for (; i + kWidth <= columns; i += kWidth) store(x + i, gated(load(x + i), load(gate + i)));
  if (i < columns) {
    const int left = static_cast<int>(columns - i);
    store_first(x + i, gated(load_first(x + i, left), load_first(gate + i, left)), left);
  }
}

OMNI_FN static void rotate(float* x, int64_t heads, int64_t dim, int64_t half, const float* cosine,
                           const float* sine) {
  for (int64_t head = 0; head < heads; ++head, x += dim) {
    float* y = x + half;
    int64_t i = 0;
    for (; i + kWidth <= half; i += kWidth) {
      const V a = load(x + i), b = load(y + i), c = load(cosine + i), s = load(sine + i);
      store(x + i, a * c - b * s);
      store(y + i, b * c + a * s);
    }
    for (; i < half; ++i) {
      const float a = x[i], b = y[i];
      x[i] = a * cosine[i] - b * sine[i];
      y[i] = b * cosine[i] + a * sine[i];
    }
  }
}

}  // namespace OMNI_WIDTH_NAMESPACE
}  // namespace omni
