// AVX-512 VNNI path: vpdpbusd multiplies 16 outputs by 4 inputs at once. Its unsigned operand is
// the stored weight, its signed one the activation; what the stored weights exceed theirs by leaves
// in the accumulator's start value, which costs no memory traffic.
#include "../isa.h"
#include "linear.h"

#if OMNI_X86
#include <immintrin.h>

#include <cstring>

namespace omni {
namespace {

constexpr int kMaxRows = 6;  // 2 panels x 6 rows: 12 integer and 12 float accumulators of 32

constexpr int kNear = 4096;  // bytes fetched ahead of their use, measured best of 0..4096
constexpr int kNearValues = 256;  // activations of each row fetched ahead, best of 0, 256, 1024

// Per group: int32 quads[kSteps][rows] (4 int8 each), int32 or float correction[rows], float
// scale[rows].
int64_t record_bytes(Format, int rows) { return int64_t{rows} * (kSteps + 2) * 4; }

// Eight vectors' largest lanes, as the lanes of one vector.
OMNI_AVX512 inline __m256i largest_of_each(const __m256i v[8]) {
  __m256i pair[4], four[2];
  for (int i = 0; i < 4; ++i)
    pair[i] = _mm256_max_epi32(_mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                               _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 2; ++i)
    four[i] = _mm256_max_epi32(_mm256_unpacklo_epi64(pair[2 * i], pair[2 * i + 1]),
                               _mm256_unpackhi_epi64(pair[2 * i], pair[2 * i + 1]));
  return _mm256_max_epi32(_mm256_permute2x128_si256(four[0], four[1], 0x20),
                          _mm256_permute2x128_si256(four[0], four[1], 0x31));
}

OMNI_AVX512 inline void transpose(__m256i v[8]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j) {
      b[4 * i + 2 * j] = _mm256_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
      b[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
    }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
    v[4 + i] = _mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
  }
}

// The same for ROWS rows at once, with a row in each lane wherever there is one number per row.
template <int ROWS>
OMNI_AVX512 void quantize_rows(const float* x, int64_t columns, int64_t groups, Format format,
                               uint8_t* record) {
  static_assert(4 <= ROWS && ROWS <= 8, "stores of 8 lanes must stay within the record");
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m256 most = _mm256_set1_ps(127.0f);
  const __m256i zero = _mm256_set1_epi32(-zero_of(format.bits));
  for (int64_t g = 0; g < groups; ++g, x += kGroup, record += record_bytes(format, ROWS)) {
    const int64_t left = columns - g * kGroup;
    const uint32_t mask = left < kGroup ? (1u << left) - 1 : ~0u;
    const auto low_mask = static_cast<__mmask16>(mask);
    const auto high_mask = static_cast<__mmask16>(mask >> 16);
    __m256i each[8];
    for (int row = 0; row < 8; ++row) {
      if (row >= ROWS) {
        each[row] = _mm256_setzero_si256();
        continue;
      }
      _mm_prefetch(x + row * columns + kNearValues, _MM_HINT_T0);
      _mm_prefetch(x + row * columns + kNearValues + kPanel, _MM_HINT_T0);
      const __m512i larger = _mm512_max_epi32(
          _mm512_and_si512(_mm512_maskz_loadu_epi32(low_mask, x + row * columns), magnitude),
          _mm512_and_si512(_mm512_maskz_loadu_epi32(high_mask, x + row * columns + 16), magnitude));
      each[row] = _mm256_max_epi32(_mm512_castsi512_si256(larger),
                                   _mm512_extracti64x4_epi64(larger, 1));
    }
    const __m256i bits = largest_of_each(each);
    const __m256 amax = _mm256_castsi256_ps(bits);
    const __mmask8 broken = _mm256_cmpge_epi32_mask(bits, _mm256_set1_epi32(0x7f800000));
    const __mmask8 usable = static_cast<__mmask8>(
        _mm256_cmp_ps_mask(amax, _mm256_set1_ps(kTiny), _CMP_GE_OQ) & ~broken);
    const __m256 scale = _mm256_mask_mov_ps(_mm256_maskz_div_ps(usable, amax, most), broken,
                                            _mm256_set1_ps(__builtin_nanf("")));
    alignas(32) float inverse[8];
    _mm256_store_ps(inverse, _mm256_maskz_div_ps(usable, most, amax));
    for (int row = 0; row < ROWS; ++row) {
      // What is not finite, times zero, becomes the integer whose low bytes are zero.
      const __m512 factor = _mm512_set1_ps(inverse[row]);
      const __m512i low = _mm512_cvtps_epi32(
          _mm512_mul_ps(_mm512_maskz_loadu_ps(low_mask, x + row * columns), factor));
      const __m512i high = _mm512_cvtps_epi32(
          _mm512_mul_ps(_mm512_maskz_loadu_ps(high_mask, x + row * columns + 16), factor));
      each[row] = _mm512_cvtepi16_epi8(_mm512_packs_epi32(low, high));
    }
    transpose(each);  // packing made the order of quads 0, 4, 1, 5, 2, 6, 3, 7
    auto* target = reinterpret_cast<int32_t*>(record);
    __m256i sum = _mm256_setzero_si256();
    for (int step = 0; step < kSteps; ++step) {
      const __m256i quads = each[step % kHalf * 2 + step / kHalf];
      sum = _mm256_dpbusd_epi32(sum, _mm256_set1_epi8(1), quads);
      // Lanes from ROWS on are written over by what comes next.
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + step * ROWS), quads);
    }
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(target + kSteps * ROWS),
        format.offsets ? _mm256_castps_si256(_mm256_mul_ps(scale, _mm256_cvtepi32_ps(sum)))
                       : _mm256_mullo_epi32(zero, sum));
    _mm256_mask_storeu_ps(target + (kSteps + 1) * ROWS, (1 << ROWS) - 1, scale);
  }
}

OMNI_AVX512 void quantize(const float* x, int64_t columns, int64_t groups, int rows,
                          Format format, uint8_t* block) {
  if (rows == 4) return quantize_rows<4>(x, columns, groups, format, block);
  if (rows == 5) return quantize_rows<5>(x, columns, groups, format, block);
  if (rows == 6) return quantize_rows<6>(x, columns, groups, format, block);
  const int64_t bytes = record_bytes(format, rows);
  const int32_t zero = zero_of(format.bits);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int row = 0; row < rows; ++row, x += columns) {
    uint8_t* record = block;
    for (int64_t g = 0; g < groups; ++g, record += bytes) {
      const int64_t left = columns - g * kGroup;
      const uint32_t mask = left < kGroup ? (1u << left) - 1 : ~0u;
      const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x + g * kGroup);
      const __m512 high =
          _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), x + g * kGroup + 16);
      const int32_t most = _mm512_reduce_max_epi32(
          _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                           _mm512_and_si512(_mm512_castps_si512(high), magnitude)));
      float amax;
      std::memcpy(&amax, &most, sizeof(amax));
      __m512i q_low = _mm512_setzero_si512(), q_high = _mm512_setzero_si512();
      int32_t sum = 0;
      float scale = 0.0f;
      if (most >= 0x7f800000) {
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
      target[kSteps * rows] = -zero * sum;
      if (format.offsets) {
        const float surplus = scale * static_cast<float>(sum);
        std::memcpy(target + kSteps * rows, &surplus, sizeof(float));
      }
      std::memcpy(target + (kSteps + 1) * rows, &scale, sizeof(float));
    }
  }
}

// Line `step` of a group, a weight in each byte. Masks and shifts, and loads that the compiler keeps.
template <int BITS>
OMNI_AVX512 inline __m512i load_line(const uint8_t* group, int step) {
  if (BITS == 8) return _mm512_loadu_si512(group + step * kLine);
  const __m512i raw = _mm512_loadu_si512(group + step % kHalf * kLine);
  const __m512i nibble = _mm512_and_si512(step < kHalf ? raw : _mm512_srli_epi16(raw, 4),
                                          _mm512_set1_epi8(0x0f));
  if (BITS == 4) return nibble;
  const __m512i fifth = _mm512_loadu_si512(group + kHalf * kLine);  // bit `step` of each byte
  const __m512i shifted = step < kHalf ? _mm512_slli_epi16(fifth, kHalf - step)
                                       : _mm512_srli_epi16(fifth, step - kHalf);
  constexpr int kOrAnd = 0xf8;  // a | (b & c)
  return _mm512_ternarylogic_epi32(nibble, shifted, _mm512_set1_epi8(0x10), kOrAnd);
}

template <int BITS>
OMNI_AVX512 void spread_groups(const uint8_t* data, int64_t groups, uint8_t* lines) {
  for (int64_t g = 0; g < groups; ++g, data += group_bytes(BITS), lines += kSpread)
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step)
      _mm512_storeu_si512(lines + step * kLine, load_line<BITS>(data, step));
}

void spread(const uint8_t* data, int bits, int64_t groups, uint8_t* lines) {
  if (bits == 4)
    spread_groups<4>(data, groups, lines);
  else
    spread_groups<5>(data, groups, lines);
}

// NEAR: see Ahead.
template <int BITS, bool OFFSETS, int PANELS, int ROWS, bool NEAR>
OMNI_AVX512 void panel_tile(const Tile& tile, int64_t panel, const uint8_t* block, Ahead ahead,
                            float* sums) {
  const int64_t w_stride = tile.panel_bytes;
  const int64_t s_stride = tile.panel_scales;
  const uint8_t* w = tile.data + panel * w_stride;
  const uint16_t* s = tile.scales + panel * s_stride;
  __m512 total[PANELS][ROWS];
  for (int p = 0; p < PANELS; ++p)
    for (int m = 0; m < ROWS; ++m) total[p][m] = _mm512_loadu_ps(sums + (p * ROWS + m) * kPanel);
  for (int64_t g = 0; g < tile.groups; ++g) {
    const auto* quads = reinterpret_cast<const int32_t*>(block);
    const int32_t* correction = quads + kSteps * ROWS;
    const auto* scale = reinterpret_cast<const float*>(correction + ROWS);
    for (int i = 0; i < ahead.lines; ++i, ahead.memory += kLine)
      _mm_prefetch(ahead.memory, _MM_HINT_T1);
    __m512i acc[PANELS][ROWS];
    for (int m = 0; m < ROWS; ++m)
      for (int p = 0; p < PANELS; ++p) acc[p][m] = _mm512_set1_epi32(OFFSETS ? 0 : correction[m]);
#pragma GCC unroll 8
    for (int i = 0; i < kSteps; ++i) {
      // Both halves of a byte in turn, so that it is loaded once.
      const int step = BITS == 8 ? i : i / 2 + i % 2 * kHalf;
      __m512i line[PANELS];
      for (int p = 0; p < PANELS; ++p) {
        const uint8_t* from = w + p * w_stride;
        if (NEAR && i < BITS) _mm_prefetch(from + i * kLine + kNear, _MM_HINT_T0);
        line[p] = load_line<BITS>(from, step);
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
      if (!OFFSETS) continue;
      const __m512 offset = _mm512_cvtph_ps(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(s + p * s_stride + kPanel)));
      const auto* surplus = reinterpret_cast<const float*>(correction);
      for (int m = 0; m < ROWS; ++m)
        total[p][m] = _mm512_fmadd_ps(offset, _mm512_set1_ps(surplus[m]), total[p][m]);
    }
    w += group_bytes(BITS);
    s += OFFSETS ? 2 * kPanel : kPanel;
    block += ROWS * (kSteps + 2) * 4;
  }
  for (int p = 0; p < PANELS; ++p)
    for (int m = 0; m < ROWS; ++m)
      _mm512_storeu_ps(sums + (p * ROWS + m) * kPanel, total[p][m]);
}

template <int BITS, bool OFFSETS, int ROWS>
void row_tile(const Tile& tile, const uint8_t* block, Ahead ahead, float* sums) {
  if (tile.panels == 2 && ROWS > 1) {
    (ahead.near ? panel_tile<BITS, OFFSETS, 2, ROWS, true>
                : panel_tile<BITS, OFFSETS, 2, ROWS, false>)(tile, 0, block, ahead, sums);
    return;
  }
  // One row waits for memory only, and one stream is read faster than two.
  for (int p = 0; p < tile.panels; ++p)
    panel_tile<BITS, OFFSETS, 1, ROWS, true>(tile, p, block, ahead, sums + p * ROWS * kPanel);
}

template <int BITS, bool OFFSETS>
void format_tile(const Tile& tile, const uint8_t* block, int rows, Ahead ahead, float* sums) {
  switch (rows) {
    case 1: row_tile<BITS, OFFSETS, 1>(tile, block, ahead, sums); break;
    case 2: row_tile<BITS, OFFSETS, 2>(tile, block, ahead, sums); break;
    case 3: row_tile<BITS, OFFSETS, 3>(tile, block, ahead, sums); break;
    case 4: row_tile<BITS, OFFSETS, 4>(tile, block, ahead, sums); break;
    case 5: row_tile<BITS, OFFSETS, 5>(tile, block, ahead, sums); break;
    default: row_tile<BITS, OFFSETS, 6>(tile, block, ahead, sums); break;
  }
}

void tile(const Tile& tile, const uint8_t* block, int rows, Ahead ahead, float* sums) {
  const bool offsets = tile.format.offsets;
  if (tile.format.bits == 8 || tile.spread)
    (offsets ? format_tile<8, true> : format_tile<8, false>)(tile, block, rows, ahead, sums);
  else if (tile.format.bits == 5)
    (offsets ? format_tile<5, true> : format_tile<5, false>)(tile, block, rows, ahead, sums);
  else
    (offsets ? format_tile<4, true> : format_tile<4, false>)(tile, block, rows, ahead, sums);
}

}  // namespace

const LinearPath kAvx512Linear = {kMaxRows, record_bytes, quantize, spread, tile};

}  // namespace omni
#endif
