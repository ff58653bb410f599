// AVX2 path. vpmaddubsw would saturate on full 8-bit values, so a line is split into its even and
// odd bytes as 16-bit lanes (a mask and a shift) and multiplied by pairs of activations that are
// kept as int16: (x0, x2) and (x1, x3). All integer sums are exact.
#include "../isa.h"
#include "linear.h"

#if OMNI_X86
#include <immintrin.h>

#include <cstring>

namespace omni {
namespace {

constexpr int kMaxRows = 4;

constexpr int kNear = 4096;  // bytes fetched ahead of their use

// Per group: int32 pairs[kSteps][2][rows], int32 correction[rows], float scale[rows].
int64_t record_bytes(int rows) { return int64_t{rows} * (kSteps * 2 + 2) * 4; }

OMNI_AVX2 GroupScale quantize_group(const float* x, __m256i q32[4]) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256 value[4];
  for (int i = 0; i < 4; ++i) value[i] = _mm256_loadu_ps(x + 8 * i);
  __m256i most = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i)
    most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(value[i]), magnitude));
  __m128i half =
      _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  const int32_t bits = _mm_cvtsi128_si32(half);
  const float amax = _mm_cvtss_f32(_mm_castsi128_ps(half));
  for (int i = 0; i < 4; ++i) q32[i] = _mm256_setzero_si256();
  if (bits >= 0x7f800000) return {__builtin_nanf(""), 0};
  if (amax < kTiny) return {0.0f, 0};
  const __m256 inverse = _mm256_set1_ps(127.0f / amax);
  __m256i sum = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    q32[i] = _mm256_cvtps_epi32(_mm256_mul_ps(value[i], inverse));
    sum = _mm256_add_epi32(sum, q32[i]);
  }
  half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return {amax / 127.0f, _mm_cvtsi128_si32(half)};
}

OMNI_AVX2 void quantize(const float* x, int64_t columns, int64_t groups, int rows,
                        uint8_t* block) {
  const int64_t bytes = record_bytes(rows);
  for (int row = 0; row < rows; ++row, x += columns) {
    uint8_t* record = block;
    for (int64_t g = 0; g < groups; ++g, record += bytes) {
      alignas(32) float padded[kGroup];
      const float* source = x + g * kGroup;
      const int64_t left = columns - g * kGroup;
      if (left < kGroup) {
        std::memset(padded, 0, sizeof(padded));
        std::memcpy(padded, source, left * sizeof(float));
        source = padded;
      }
      __m256i q[4];
      const GroupScale group = quantize_group(source, q);
      auto* pairs = reinterpret_cast<int32_t*>(record);
      for (int i = 0; i < 4; ++i) {
        // Lanes x0 x1 x2 x3 | x4 ... -> (x0, x2) in lane 0 and (x1, x3) in lane 1 of each half.
        const __m256i ahead = _mm256_slli_epi32(_mm256_shuffle_epi32(q[i], 0xee), 16);
        const __m256i low = _mm256_and_si256(q[i], _mm256_set1_epi32(0xffff));
        const __m256i both = _mm256_or_si256(low, ahead);
        const __m128i first = _mm256_castsi256_si128(both);
        const __m128i second = _mm256_extracti128_si256(both, 1);
        int32_t* target = pairs + int64_t{4} * i * rows + row;
        target[0] = _mm_cvtsi128_si32(first);
        target[rows] = _mm_extract_epi32(first, 1);
        target[2 * rows] = _mm_cvtsi128_si32(second);
        target[3 * rows] = _mm_extract_epi32(second, 1);
      }
      pairs[kSteps * 2 * rows + row] = -kZero * group.sum;
      std::memcpy(pairs + (kSteps * 2 + 1) * rows + row, &group.scale, sizeof(float));
    }
  }
}

// Without this GCC sums all products of a group as one tree and spills every one of them.
#define PIN(accumulator) asm("" : "+x"(accumulator))

template <int ROWS>
OMNI_AVX2 void panel_tile(const uint8_t* w, const uint16_t* s, const uint8_t* block,
                          int64_t groups, Ahead ahead, float* sums) {
  const __m256i even_bytes = _mm256_set1_epi16(0x00ff);
  __m256 total[ROWS][2];
  for (int m = 0; m < ROWS; ++m)
    for (int h = 0; h < 2; ++h) total[m][h] = _mm256_loadu_ps(sums + m * kPanel + 8 * h);
  for (int64_t g = 0; g < groups; ++g) {
    const auto* pairs = reinterpret_cast<const int32_t*>(block);
    const int32_t* correction = pairs + kSteps * 2 * ROWS;
    const auto* scale = reinterpret_cast<const float*>(correction + ROWS);
    for (int i = 0; i < ahead.lines; ++i, ahead.memory += kLine)
      _mm_prefetch(ahead.memory, _MM_HINT_T1);
    __m256i acc[ROWS][2];
    for (int m = 0; m < ROWS; ++m) acc[m][0] = acc[m][1] = _mm256_set1_epi32(correction[m]);
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
      __m256i even[2], odd[2];
      _mm_prefetch(w + step * kLine + kNear, _MM_HINT_T0);
      for (int h = 0; h < 2; ++h) {
        const __m256i line =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + step * kLine + h * 32));
        even[h] = _mm256_and_si256(line, even_bytes);
        odd[h] = _mm256_srli_epi16(line, 8);
      }
#pragma GCC unroll 4
      for (int m = 0; m < ROWS; ++m) {
        const __m256i x02 = _mm256_set1_epi32(pairs[(2 * step) * ROWS + m]);
        const __m256i x13 = _mm256_set1_epi32(pairs[(2 * step + 1) * ROWS + m]);
        for (int h = 0; h < 2; ++h) {
          acc[m][h] = _mm256_add_epi32(acc[m][h], _mm256_madd_epi16(even[h], x02));
          PIN(acc[m][h]);
          acc[m][h] = _mm256_add_epi32(acc[m][h], _mm256_madd_epi16(odd[h], x13));
          PIN(acc[m][h]);
        }
      }
    }
    for (int h = 0; h < 2; ++h) {
      const __m256 ws =
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(s + 8 * h)));
      for (int m = 0; m < ROWS; ++m)
        total[m][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[m][h]),
                                      _mm256_mul_ps(ws, _mm256_set1_ps(scale[m])), total[m][h]);
    }
    w += kPanelGroup;
    s += kPanel;
    block += ROWS * (kSteps * 2 + 2) * 4;
  }
  for (int m = 0; m < ROWS; ++m)
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(sums + m * kPanel + 8 * h, total[m][h]);
}

void tile(const Weight& weight, int64_t panel, int panels, Span span, const uint8_t* block,
          int rows, Ahead ahead, float* sums) {
  block += span.first * record_bytes(rows);
  for (int p = 0; p < panels; ++p, ++panel, sums += int64_t{rows} * kPanel) {
    const uint8_t* w = weight.data + (panel * weight.groups + span.first) * kPanelGroup;
    const uint16_t* s = weight.scales + (panel * weight.groups + span.first) * kPanel;
    switch (rows) {
      case 1: panel_tile<1>(w, s, block, span.size(), ahead, sums); break;
      case 2: panel_tile<2>(w, s, block, span.size(), ahead, sums); break;
      case 3: panel_tile<3>(w, s, block, span.size(), ahead, sums); break;
      default: panel_tile<4>(w, s, block, span.size(), ahead, sums); break;
    }
  }
}

}  // namespace

const LinearPath kAvx2Linear = {kMaxRows, record_bytes, quantize, tile};

}  // namespace omni
#endif
