// Float vectors of one width. Include once per file, with OMNI_SIMD = 512, 256 or 128 (portable);
// everything lands in its own namespace, so the same kernel source compiles once per width.
//
// max(a, b) returns b when either is NaN; keep the value that may be NaN on the right.
#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

#if OMNI_SIMD == 512
#include <immintrin.h>
#define OMNI_FN OMNI_AVX512
#define OMNI_WIDTH_NAMESPACE simd512
#elif OMNI_SIMD == 256
#include <immintrin.h>
#define OMNI_FN OMNI_AVX2
#define OMNI_WIDTH_NAMESPACE simd256
#else
#define OMNI_FN
#define OMNI_WIDTH_NAMESPACE simd128
#endif
#define OMNI_INLINE OMNI_FN static inline __attribute__((always_inline))

namespace omni {
namespace OMNI_WIDTH_NAMESPACE {

#if OMNI_SIMD == 512

using V = __m512;
constexpr int kWidth = 16;
OMNI_INLINE V load(const float* p) { return _mm512_loadu_ps(p); }
OMNI_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a); }
OMNI_INLINE V set1(float a) { return _mm512_set1_ps(a); }
OMNI_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
OMNI_INLINE V max(V a, V b) { return _mm512_max_ps(a, b); }
OMNI_INLINE V min(V a, V b) { return _mm512_min_ps(a, b); }
OMNI_INLINE V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
// 2^n for whole n in [-127, 127]; -127 gives 0.
OMNI_INLINE V power2(V n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}
OMNI_INLINE __m256 halves(V a) {
  return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
}
OMNI_INLINE __m256 max_halves(V a) {
  return _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
}
// The first `count` values; the rest are 0.
OMNI_INLINE V load_first(const float* p, int count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
}
OMNI_INLINE void store_first(float* p, V a, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), a);
}
// Lane of 4 number l holds rows[4 * l][0..3].
OMNI_INLINE V load_lanes(const float* const* rows, int64_t at) {
  __m512 all = _mm512_castps128_ps512(_mm_loadu_ps(rows[0] + at));
  all = _mm512_insertf32x4(all, _mm_loadu_ps(rows[4] + at), 1);
  all = _mm512_insertf32x4(all, _mm_loadu_ps(rows[8] + at), 2);
  return _mm512_insertf32x4(all, _mm_loadu_ps(rows[12] + at), 3);
}
OMNI_INLINE void transpose4(V& a, V& b, V& c, V& d) {
  const V ab_low = _mm512_unpacklo_ps(a, b), ab_high = _mm512_unpackhi_ps(a, b);
  const V cd_low = _mm512_unpacklo_ps(c, d), cd_high = _mm512_unpackhi_ps(c, d);
  a = _mm512_shuffle_ps(ab_low, cd_low, 0x44);
  b = _mm512_shuffle_ps(ab_low, cd_low, 0xee);
  c = _mm512_shuffle_ps(ab_high, cd_high, 0x44);
  d = _mm512_shuffle_ps(ab_high, cd_high, 0xee);
}

#elif OMNI_SIMD == 256

using V = __m256;
constexpr int kWidth = 8;
OMNI_INLINE V load(const float* p) { return _mm256_loadu_ps(p); }
OMNI_INLINE void store(float* p, V a) { _mm256_storeu_ps(p, a); }
OMNI_INLINE V set1(float a) { return _mm256_set1_ps(a); }
OMNI_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
OMNI_INLINE V max(V a, V b) { return _mm256_max_ps(a, b); }
OMNI_INLINE V min(V a, V b) { return _mm256_min_ps(a, b); }
OMNI_INLINE V round(V a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
OMNI_INLINE V power2(V n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
OMNI_INLINE __m256 halves(V a) { return a; }
OMNI_INLINE __m256 max_halves(V a) { return a; }
OMNI_INLINE V load_lanes(const float* const* rows, int64_t at) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[0] + at)),
                              _mm_loadu_ps(rows[4] + at), 1);
}
OMNI_INLINE void transpose4(V& a, V& b, V& c, V& d) {
  const V ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  const V cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  a = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
  b = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
  c = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
  d = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
}

#else

typedef float V __attribute__((vector_size(16)));
typedef int32_t Integers __attribute__((vector_size(16)));
constexpr int kWidth = 4;
OMNI_INLINE V load(const float* p) {
  V a;
  std::memcpy(&a, p, sizeof(a));
  return a;
}
OMNI_INLINE void store(float* p, V a) { std::memcpy(p, &a, sizeof(a)); }
OMNI_INLINE V set1(float a) { return V{a, a, a, a}; }
OMNI_INLINE V fma(V a, V b, V c) { return a * b + c; }
OMNI_INLINE V max(V a, V b) { return a > b ? a : b; }
OMNI_INLINE V min(V a, V b) { return a < b ? a : b; }
// Adding 1.5 * 2^23 leaves no bits for a fraction; right for |a| < 2^22.
OMNI_INLINE V round(V a) {
  const V magic = set1(12582912.0f);
  return (a + magic) - magic;
}
OMNI_INLINE V power2(V n) {
  const Integers bits = (__builtin_convertvector(n, Integers) + 127) << 23;
  V result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
OMNI_INLINE float hsum(V a) { return (a[0] + a[2]) + (a[1] + a[3]); }
OMNI_INLINE float hmax(V a) {
  float most = a[0];
  for (int i = 1; i < 4; ++i) most = a[i] > most ? a[i] : most;
  return most;
}
OMNI_INLINE V load_lanes(const float* const* rows, int64_t at) { return load(rows[0] + at); }
OMNI_INLINE void transpose4(V& a, V& b, V& c, V& d) {
  const V w = a, x = b, y = c, z = d;
  a = V{w[0], x[0], y[0], z[0]};
  b = V{w[1], x[1], y[1], z[1]};
  c = V{w[2], x[2], y[2], z[2]};
  d = V{w[3], x[3], y[3], z[3]};
}

#endif

#if OMNI_SIMD != 128
OMNI_INLINE float hsum(V a) {
  const __m256 half = halves(a);
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
OMNI_INLINE float hmax(V a) {
  const __m256 half = max_halves(a);
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}
#endif
#if OMNI_SIMD != 512
OMNI_INLINE V load_first(const float* p, int count) {
  alignas(32) float padded[kWidth] = {};
  std::memcpy(padded, p, count * sizeof(float));
  return load(padded);
}
OMNI_INLINE void store_first(float* p, V a, int count) {
  alignas(32) float padded[kWidth];
  store(padded, a);
  std::memcpy(p, padded, count * sizeof(float));
}
#endif

// Four floats, whatever the width of V.
typedef float Four __attribute__((vector_size(16)));
OMNI_INLINE Four load4(const float* p) {
  Four a;
  std::memcpy(&a, p, sizeof(a));
  return a;
}
OMNI_INLINE void store4(float* p, Four a) { std::memcpy(p, &a, sizeof(a)); }
// The sums over the lanes of a, b, c and d.
OMNI_INLINE Four sum4(V a, V b, V c, V d) {
  transpose4(a, b, c, d);
  const V lanes = (a + b) + (c + d);
#if OMNI_SIMD == 128
  return lanes;
#else
  const __m256 half = halves(lanes);
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#endif
}

// 2^a with a relative error below 1e-7; exactly 1 at 0, exactly 0 below -126.5; a <= 127.
OMNI_INLINE V exp2(V a) {
  const V clamped = max(set1(-127.0f), min(set1(127.0f), a));
  const V whole = round(clamped);
  const V f = clamped - whole;
  // Chebyshev interpolation of (2^f - 1) / f on [-1/2, 1/2].
  V p = set1(1.546144777e-04f);
  p = fma(p, f, set1(1.339086681e-03f));
  p = fma(p, f, set1(9.618056938e-03f));
  p = fma(p, f, set1(5.550356954e-02f));
  p = fma(p, f, set1(2.402265072e-01f));
  p = fma(p, f, set1(6.931471825e-01f));
  p = fma(p, f, set1(1.0f));
  return p * power2(whole);
}
OMNI_INLINE float exp2_one(float a) {
  float lanes[kWidth];
  store(lanes, exp2(set1(a)));
  return lanes[0];
}

}  // namespace OMNI_WIDTH_NAMESPACE
}  // namespace omni
