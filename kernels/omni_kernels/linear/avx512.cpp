// AVX-512 VNNI path: vpdpbusd multiplies 16 outputs by 4 inputs at once. Its unsigned operand is
// the stored weight byte, its signed one the activation; the +128 of the weights leaves in the
// accumulator's start value, which costs no memory traffic.
#include "../isa.h"
#include "linear.h"

#if OMNI_X86
#include <immintrin.h>

#include <cstring>

namespace omni {
namespace {

constexpr int kMaxRows = 6;  // 2 panels x 6 rows: 12 integer and 12 float accumulators of 32

constexpr int kNear = 4096;  // bytes fetched ahead of their use, measured best of 0..4096

// Per group: int32 quads[kSteps][rows] (4 int8 each), int32 correction[rows], float scale[rows].
int64_t record_bytes(int rows) { return int64_t{rows} * (kSteps + 2) * 4; }

OMNI_AVX512 void quantize(const float* x, int64_t columns, int64_t groups, int rows,
                          uint8_t* block) {
  const int64_t bytes = record_bytes(rows);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int row = 0; row < rows; ++row, x += columns) {
    uint8_t* record = block;
    for (int64_t g = 0; g < groups; ++g, record += bytes) {
      const int64_t left = columns - g * kGroup;
      const uint32_t mask = left < kGroup ? (1u << left) - 1 : ~0u;
      const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x + g * kGroup);
      const __m512 high =
          _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), x + g * kGroup + 16);
      const int32_t bits = _mm512_reduce_max_epi32(
          _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                           _mm512_and_si512(_mm512_castps_si512(high), magnitude)));
      float amax;
      std::memcpy(&amax, &bits, sizeof(amax));
      __m512i q_low = _mm512_setzero_si512(), q_high = _mm512_setzero_si512();
      int32_t sum = 0;
      float scale = 0.0f;
      if (bits >= 0x7f800000) {
        scale = __builtin_nanf("");
      } else if (amax >= kTiny) {
        const __m512 inverse = _mm512_set1_ps(127.0f / amax);
        q_low = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
        q_high = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
        sum = _mm512_reduce_add_epi32(_mm512_add_epi32(q_low, q_high));
        scale = amax / 127.0f;
      }
      alignas(16) int32_t quads[kSteps];
      _mm_store_si128(reinterpret_cast<__m128i*>(quads), _mm512_cvtepi32_epi8(q_low));
      _mm_store_si128(reinterpret_cast<__m128i*>(quads + 4), _mm512_cvtepi32_epi8(q_high));
      auto* target = reinterpret_cast<int32_t*>(record) + row;
      for (int step = 0; step < kSteps; ++step) target[step * rows] = quads[step];
      target[kSteps * rows] = -kZero * sum;
      std::memcpy(target + (kSteps + 1) * rows, &scale, sizeof(float));
    }
  }
}

template <int PANELS, int ROWS>
OMNI_AVX512 void panel_tile(const Weight& weight, int64_t panel, Span span, const uint8_t* block,
                            Ahead ahead, float* sums) {
  const int64_t w_stride = weight.groups * kPanelGroup;
  const int64_t s_stride = weight.groups * kPanel;
  const uint8_t* w = weight.data + panel * w_stride + span.first * kPanelGroup;
  const uint16_t* s = weight.scales + panel * s_stride + span.first * kPanel;
  block += span.first * record_bytes(ROWS);
  __m512 total[PANELS][ROWS];
  for (int p = 0; p < PANELS; ++p)
    for (int m = 0; m < ROWS; ++m) total[p][m] = _mm512_loadu_ps(sums + (p * ROWS + m) * kPanel);
  for (int64_t g = span.first; g < span.last; ++g) {
    const auto* quads = reinterpret_cast<const int32_t*>(block);
    const int32_t* correction = quads + kSteps * ROWS;
    const auto* scale = reinterpret_cast<const float*>(correction + ROWS);
    for (int i = 0; i < ahead.lines; ++i, ahead.memory += kLine)
      _mm_prefetch(ahead.memory, _MM_HINT_T1);
    __m512i acc[PANELS][ROWS];
    for (int m = 0; m < ROWS; ++m)
      for (int p = 0; p < PANELS; ++p) acc[p][m] = _mm512_set1_epi32(correction[m]);
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step) {
      __m512i line[PANELS];
      for (int p = 0; p < PANELS; ++p) {
        const uint8_t* from = w + p * w_stride + step * kLine;
        _mm_prefetch(from + kNear, _MM_HINT_T0);
        line[p] = _mm512_loadu_si512(from);
      }
#pragma GCC unroll 6
      for (int m = 0; m < ROWS; ++m) {
        const __m512i quad = _mm512_set1_epi32(quads[step * ROWS + m]);
        for (int p = 0; p < PANELS; ++p)
          acc[p][m] = _mm512_dpbusd_epi32(acc[p][m], line[p], quad);
      }
    }
    for (int p = 0; p < PANELS; ++p) {
      const __m512 ws = _mm512_cvtph_ps(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(s + p * s_stride)));
      for (int m = 0; m < ROWS; ++m)
        total[p][m] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[p][m]),
                            _mm512_mul_ps(ws, _mm512_set1_ps(scale[m])), total[p][m]);
    }
    w += kPanelGroup;
    s += kPanel;
    block += ROWS * (kSteps + 2) * 4;
  }
  for (int p = 0; p < PANELS; ++p)
    for (int m = 0; m < ROWS; ++m)
      _mm512_storeu_ps(sums + (p * ROWS + m) * kPanel, total[p][m]);
}

template <int ROWS>
void row_tile(const Weight& weight, int64_t panel, int panels, Span span,
              const uint8_t* block, Ahead ahead, float* sums) {
  if (panels == 2 && ROWS > 1) {
    panel_tile<2, ROWS>(weight, panel, span, block, ahead, sums);
    return;
  }
  // One row waits for memory only, and one stream is read faster than two.
  for (int p = 0; p < panels; ++p)
    panel_tile<1, ROWS>(weight, panel + p, span, block, ahead, sums + p * ROWS * kPanel);
}

void tile(const Weight& weight, int64_t panel, int panels, Span span, const uint8_t* block,
          int rows, Ahead ahead, float* sums) {
  switch (rows) {
    case 1: row_tile<1>(weight, panel, panels, span, block, ahead, sums); break;
    case 2: row_tile<2>(weight, panel, panels, span, block, ahead, sums); break;
    case 3: row_tile<3>(weight, panel, panels, span, block, ahead, sums); break;
    case 4: row_tile<4>(weight, panel, panels, span, block, ahead, sums); break;
    case 5: row_tile<5>(weight, panel, panels, span, block, ahead, sums); break;
    default: row_tile<6>(weight, panel, panels, span, block, ahead, sums); break;
  }
}

}  // namespace

const LinearPath kAvx512Linear = {kMaxRows, record_bytes, quantize, tile};

}  // namespace omni
#endif
