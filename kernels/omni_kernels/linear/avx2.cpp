// AVX2 path. vpmaddubsw would saturate on full 8-bit values, so a line is split into its even and
// odd bytes as 16-bit lanes (a mask and a shift) and multiplied by pairs of activations that are
// kept as int16: (x0, x2) and (x1, x3). Weights of 4 and 5 bits are small enough for vpmaddubsw and
// even for sums of several lines in 16 bits. All integer sums are exact.
#include "../isa.h"
#include "linear.h"

#if OMNI_X86
#include <immintrin.h>

#include <cstring>

namespace omni {
namespace {

constexpr int kMaxRows = 4;

constexpr int kNear = 4096;  // bytes fetched ahead of their use

// Lines of 5-bit weights whose products fit in 16 bits together: 2 * 31 * 127 * 4 < 2^15. Of 4-bit
// weights all 8 lines would; a second sum costs less than a second kernel.
constexpr int kFit = 4;

// Per group, 8 bits: int32 pairs[kSteps][2][rows], int32 correction[rows], float scale[rows];
// 4 and 5 bits: int32 quads[kSteps][rows] (4 int8 each) instead of pairs, a float correction if the
// weights have offsets.
int64_t record_bytes(Format format, int rows) {
  return int64_t{rows} * (kSteps * (format.bits == 8 ? 2 : 1) + 2) * 4;
}

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

// Lanes x0 x1 x2 x3 | x4 ... -> (x0, x2) in lane 0 and (x1, x3) in lane 1 of each half.
OMNI_AVX2 void store_pairs(const __m256i q[4], int rows, int32_t* target) {
  for (int i = 0; i < 4; ++i, target += int64_t{4} * rows) {
    const __m256i ahead = _mm256_slli_epi32(_mm256_shuffle_epi32(q[i], 0xee), 16);
    const __m256i low = _mm256_and_si256(q[i], _mm256_set1_epi32(0xffff));
    const __m256i both = _mm256_or_si256(low, ahead);
    const __m128i first = _mm256_castsi256_si128(both);
    const __m128i second = _mm256_extracti128_si256(both, 1);
    target[0] = _mm_cvtsi128_si32(first);
    target[rows] = _mm_extract_epi32(first, 1);
    target[2 * rows] = _mm_cvtsi128_si32(second);
    target[3 * rows] = _mm_extract_epi32(second, 1);
  }
}

OMNI_AVX2 void store_quads(const __m256i q[4], int rows, int32_t* target) {
  for (int i = 0; i < 4; ++i, target += int64_t{2} * rows) {
    const __m256i words = _mm256_packs_epi32(q[i], q[i]);
    const __m256i bytes = _mm256_packs_epi16(words, words);
    target[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(bytes));
    target[rows] = _mm_cvtsi128_si32(_mm256_extracti128_si256(bytes, 1));
  }
}

OMNI_AVX2 void quantize(const float* x, int64_t columns, int64_t groups, int rows,
                        Format format, uint8_t* block) {
  const int64_t bytes = record_bytes(format, rows);
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
      auto* values = reinterpret_cast<int32_t*>(record) + row;
      if (format.bits == 8)
        store_pairs(q, rows, values);
      else
        store_quads(q, rows, values);
      values += kSteps * (format.bits == 8 ? 2 : 1) * rows;
      values[0] = -zero_of(format.bits) * group.sum;
      if (format.offsets) {
        const float surplus = group.scale * static_cast<float>(group.sum);
        std::memcpy(values, &surplus, sizeof(float));
      }
      std::memcpy(values + rows, &group.scale, sizeof(float));
    }
  }
}

// Half `half` of line `step` of a group of 4 or 5 BITS, or of 8, a weight in each byte.
template <int BITS>
OMNI_AVX2 inline __m256i load_half(const uint8_t* group, int step, int half) {
  const auto* lines = reinterpret_cast<const __m256i*>(group) + half;  // two halves each
  if (BITS == 8) return _mm256_loadu_si256(lines + 2 * step);
  const __m256i raw = _mm256_loadu_si256(lines + 2 * (step % kHalf));
  const __m256i nibble = _mm256_and_si256(step < kHalf ? raw : _mm256_srli_epi16(raw, 4),
                                          _mm256_set1_epi8(0x0f));
  if (BITS == 4) return nibble;
  const __m256i fifth = _mm256_loadu_si256(lines + 2 * kHalf);  // bit `step` of each byte
  const __m256i shifted = step < kHalf ? _mm256_slli_epi16(fifth, kHalf - step)
                                       : _mm256_srli_epi16(fifth, step - kHalf);
  return _mm256_or_si256(nibble, _mm256_and_si256(shifted, _mm256_set1_epi8(0x10)));
}

template <int BITS>
OMNI_AVX2 void spread_groups(const uint8_t* data, int64_t groups, uint8_t* lines) {
  for (int64_t g = 0; g < groups; ++g, data += group_bytes(BITS), lines += kSpread)
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; ++step)
      for (int half = 0; half < 2; ++half)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(lines) + 2 * step + half,
                            load_half<BITS>(data, step, half));
}

void spread(const uint8_t* data, int bits, int64_t groups, uint8_t* lines) {
  if (bits == 4)
    spread_groups<4>(data, groups, lines);
  else
    spread_groups<5>(data, groups, lines);
}

// Without this GCC sums all products of a group as one tree and spills every one of them.
#define PIN(accumulator) asm("" : "+x"(accumulator))

template <int ROWS>
OMNI_AVX2 void byte_tile(const uint8_t* w, const uint16_t* s, const uint8_t* block,
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
    w += kSpread;
    s += kPanel;
    block += ROWS * (kSteps * 2 + 2) * 4;
  }
  for (int m = 0; m < ROWS; ++m)
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(sums + m * kPanel + 8 * h, total[m][h]);
}

// Weights of at most 5 bits, packed or (BITS = 8) spread to bytes.
template <int BITS, bool OFFSETS, int ROWS>
OMNI_AVX2 void small_tile(const uint8_t* w, const uint16_t* s, const uint8_t* block,
                          int64_t groups, Ahead ahead, float* sums) {
  __m256 total[ROWS][2];
  for (int m = 0; m < ROWS; ++m)
    for (int h = 0; h < 2; ++h) total[m][h] = _mm256_loadu_ps(sums + m * kPanel + 8 * h);
  for (int64_t g = 0; g < groups; ++g) {
    const auto* quads = reinterpret_cast<const int32_t*>(block);
    const int32_t* correction = quads + kSteps * ROWS;
    const auto* scale = reinterpret_cast<const float*>(correction + ROWS);
    for (int i = 0; i < ahead.lines; ++i, ahead.memory += kLine)
      _mm_prefetch(ahead.memory, _MM_HINT_T1);
    for (int i = 0; i < BITS; ++i) _mm_prefetch(w + i * kLine + kNear, _MM_HINT_T0);
    for (int h = 0; h < 2; ++h) {
      __m256i acc[ROWS];
      for (int m = 0; m < ROWS; ++m) acc[m] = _mm256_set1_epi32(OFFSETS ? 0 : correction[m]);
#pragma GCC unroll 2
      for (int first = 0; first < kSteps; first += kFit) {
        __m256i words[ROWS];
#pragma GCC unroll 4
        for (int i = 0; i < kFit; ++i) {
          // Both halves of a byte in turn, so that it is loaded once.
          const int step = (first + i) / 2 + i % 2 * kHalf;
          const __m256i line = load_half<BITS>(w, step, h);
          for (int m = 0; m < ROWS; ++m) {
            const __m256i products =
                _mm256_maddubs_epi16(line, _mm256_set1_epi32(quads[step * ROWS + m]));
            words[m] = i == 0 ? products : _mm256_add_epi16(words[m], products);
            PIN(words[m]);
          }
        }
        for (int m = 0; m < ROWS; ++m)
          acc[m] = _mm256_add_epi32(acc[m], _mm256_madd_epi16(words[m], _mm256_set1_epi16(1)));
      }
      const __m256 ws =
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(s + 8 * h)));
      for (int m = 0; m < ROWS; ++m)
        total[m][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[m]),
                                      _mm256_mul_ps(ws, _mm256_set1_ps(scale[m])), total[m][h]);
      if (!OFFSETS) continue;
      const __m256 offset =
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(s + kPanel + 8 * h)));
      const auto* surplus = reinterpret_cast<const float*>(correction);
      for (int m = 0; m < ROWS; ++m)
        total[m][h] = _mm256_fmadd_ps(offset, _mm256_set1_ps(surplus[m]), total[m][h]);
    }
    w += group_bytes(BITS);
    s += OFFSETS ? 2 * kPanel : kPanel;
    block += ROWS * (kSteps + 2) * 4;
  }
  for (int m = 0; m < ROWS; ++m)
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(sums + m * kPanel + 8 * h, total[m][h]);
}

template <bool OFFSETS, int ROWS>
void row_tile(const Tile& tile, const uint8_t* block, Ahead ahead, float* sums) {
  for (int p = 0; p < tile.panels; ++p, sums += ROWS * kPanel) {
    const uint8_t* w = tile.data + p * tile.panel_bytes;
    const uint16_t* s = tile.scales + p * tile.panel_scales;
    if (tile.format.bits == 8)
      byte_tile<ROWS>(w, s, block, tile.groups, ahead, sums);
    else if (tile.spread)
      small_tile<8, OFFSETS, ROWS>(w, s, block, tile.groups, ahead, sums);
    else if (tile.format.bits == 5)
      small_tile<5, OFFSETS, ROWS>(w, s, block, tile.groups, ahead, sums);
    else
      small_tile<4, OFFSETS, ROWS>(w, s, block, tile.groups, ahead, sums);
  }
}

template <bool OFFSETS>
void format_tile(const Tile& tile, const uint8_t* block, int rows, Ahead ahead, float* sums) {
  switch (rows) {
    case 1: row_tile<OFFSETS, 1>(tile, block, ahead, sums); break;
    case 2: row_tile<OFFSETS, 2>(tile, block, ahead, sums); break;
    case 3: row_tile<OFFSETS, 3>(tile, block, ahead, sums); break;
    default: row_tile<OFFSETS, 4>(tile, block, ahead, sums); break;
  }
}

void tile(const Tile& tile, const uint8_t* block, int rows, Ahead ahead, float* sums) {
  (tile.format.offsets ? format_tile<true> : format_tile<false>)(tile, block, rows, ahead, sums);
}

}  // namespace

const LinearPath kAvx2Linear = {kMaxRows, record_bytes, quantize, spread, tile};

}  // namespace omni
#endif
