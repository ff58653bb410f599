// NEON path: sdot multiplies 4 outputs by 4 inputs at once, four of them a line. Both its operands
// are signed, so a weight of 8 bits loses its surplus by a flip of the top bit. Those of 4 and 5
// bits are below 128 and keep theirs, which leaves in the accumulator's start value.
#include "../isa.h"
#include "linear.h"

#if OMNI_ARM
#include <arm_neon.h>

#include <cstring>
#include <utility>

#define INLINE inline __attribute__((always_inline))

namespace omni {
namespace {

constexpr int kMaxRows = 4;           // 16 integer accumulators, 8 vectors of activations of 32
constexpr int kQuads = kLine / 16;    // vectors of a line, 4 outputs each
constexpr int kQuad = kPanel / kQuads;

// Per group: int8 q[rows][kGroup], int32 or float correction[rows], float scale[rows].
int64_t record_bytes(Format, int rows) { return int64_t{rows} * (kGroup + 8); }

GroupScale quantize_group(const float* x, int8_t* q) {
  constexpr int kParts = kGroup / 4;
  float32x4_t value[kParts];
  uint32x4_t most = vdupq_n_u32(0);  // as bits: NaN > infinity > every number
  for (int i = 0; i < kParts; ++i) {
    value[i] = vld1q_f32(x + 4 * i);
    most = vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(value[i])));
  }
  const uint32_t bits = vmaxvq_u32(most);
  float amax;
  std::memcpy(&amax, &bits, sizeof(amax));
  std::memset(q, 0, kGroup);
  if (bits >= 0x7f800000u) return {__builtin_nanf(""), 0};
  if (amax < kTiny) return {0.0f, 0};
  const float inverse = 127.0f / amax;
  int32x4_t sum = vdupq_n_s32(0);
  for (int i = 0; i < kParts; i += 2) {
    const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(value[i], inverse));
    const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(value[i + 1], inverse));
    sum = vaddq_s32(sum, vaddq_s32(low, high));
    vst1_s8(q + 4 * i, vmovn_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high))));
  }
  return {amax / 127.0f, vaddvq_s32(sum)};
}

void quantize(const float* x, int64_t columns, int64_t groups, int rows, Format format,
              uint8_t* block) {
  const int64_t bytes = record_bytes(format, rows);
  const int32_t zero = format.bits == 8 ? 0 : zero_of(format.bits);
  for (int row = 0; row < rows; ++row, x += columns) {
    uint8_t* record = block;
    for (int64_t g = 0; g < groups; ++g, record += bytes) {
      float padded[kGroup];
      const float* source = x + g * kGroup;
      const int64_t left = columns - g * kGroup;
      if (left < kGroup) {
        std::memset(padded, 0, sizeof(padded));
        std::memcpy(padded, source, static_cast<size_t>(left) * sizeof(float));
        source = padded;
      }
      const GroupScale group =
          quantize_group(source, reinterpret_cast<int8_t*>(record) + row * kGroup);
      auto* correction = reinterpret_cast<int32_t*>(record + rows * kGroup) + row;
      *correction = -zero * group.sum;
      if (format.offsets) {
        const float surplus = group.scale * static_cast<float>(group.sum);
        std::memcpy(correction, &surplus, sizeof(float));
      }
      std::memcpy(correction + rows, &group.scale, sizeof(float));
    }
  }
}

// A vector of line STEP of a group of BITS, a weight in each byte; `group` begins at that vector
// of the group's first line.
template <int BITS, int STEP>
INLINE uint8x16_t load_bytes(const uint8_t* group) {
  if constexpr (BITS == 8) {
    return vld1q_u8(group + STEP * kLine);
  } else {
    const uint8x16_t raw = vld1q_u8(group + STEP % kHalf * kLine);
    uint8x16_t nibble;
    if constexpr (STEP < kHalf)
      nibble = vandq_u8(raw, vdupq_n_u8(0x0f));
    else
      nibble = vshrq_n_u8(raw, 4);
    if constexpr (BITS == 4) return nibble;
    uint8x16_t fifth = vld1q_u8(group + kHalf * kLine);  // bit STEP of each byte
    if constexpr (STEP < kHalf)
      fifth = vshlq_n_u8(fifth, kHalf - STEP);
    else if constexpr (STEP > kHalf)
      fifth = vshrq_n_u8(fifth, STEP - kHalf);
    return vbslq_u8(vdupq_n_u8(0x10), fifth, nibble);
  }
}

template <int BITS, int STEP>
INLINE void spread_line(const uint8_t* group, uint8_t* lines) {
  const uint8x16_t bytes = load_bytes<BITS, STEP>(group);
  vst1q_u8(lines + STEP * kLine, bytes);
}

template <int BITS, int... STEP>
INLINE void spread_vector(const uint8_t* group, uint8_t* lines,
                          std::integer_sequence<int, STEP...>) {
  (spread_line<BITS, STEP>(group, lines), ...);
}

template <int BITS>
void spread_groups(const uint8_t* data, int64_t groups, uint8_t* lines) {
  for (int64_t g = 0; g < groups; ++g, data += group_bytes(BITS), lines += kSpread)
    for (int i = 0; i < kQuads; ++i)
      spread_vector<BITS>(data + 16 * i, lines + 16 * i,
                          std::make_integer_sequence<int, kSteps>());
}

void spread(const uint8_t* data, int bits, int64_t groups, uint8_t* lines) {
  if (bits == 4)
    spread_groups<4>(data, groups, lines);
  else
    spread_groups<5>(data, groups, lines);
}

// What a tile reads: packed weights of 8, 5 or 4 bits, or of 5 or 4 that are spread to bytes.
enum Stored { kEight, kFive, kFour, kBytes };
constexpr int width_of(Stored stored) { return stored == kFive ? 5 : stored == kFour ? 4 : 8; }

template <Stored STORED, int ROWS, int STEP>
OMNI_NEON INLINE void add_line(const uint8_t* w, const int8x16_t (&q)[ROWS][2],
                               int32x4_t (&acc)[ROWS][kQuads]) {
  for (int i = 0; i < kQuads; ++i) {
    uint8x16_t bytes = load_bytes<width_of(STORED), STEP>(w + 16 * i);
    if (STORED == kEight) bytes = veorq_u8(bytes, vdupq_n_u8(0x80));
    const int8x16_t line = vreinterpretq_s8_u8(bytes);
    for (int m = 0; m < ROWS; ++m)
      acc[m][i] = vdotq_laneq_s32(acc[m][i], line, q[m][STEP / 4], STEP % 4);
  }
  // Without this compilers load several lines at once, for which there are no registers.
  if (width_of(STORED) == 8 || STEP >= kHalf) asm volatile("" ::: "memory");
}

template <Stored STORED, int ROWS, int... I>
OMNI_NEON INLINE void add_group(const uint8_t* w, const int8x16_t (&q)[ROWS][2],
                                int32x4_t (&acc)[ROWS][kQuads],
                                std::integer_sequence<int, I...>) {
  // Both halves of a byte in turn, so that it is loaded once.
  (add_line<STORED, ROWS, width_of(STORED) == 8 ? I : I / 2 + I % 2 * kHalf>(w, q, acc), ...);
}

INLINE float32x4_t from_half(const uint16_t* halves) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
}

template <Stored STORED, bool OFFSETS, int ROWS>
OMNI_NEON void panel_tile(const uint8_t* w, const uint16_t* s, const uint8_t* block,
                          int64_t groups, Ahead ahead, float* sums) {
  float32x4_t total[ROWS][kQuads];
  for (int m = 0; m < ROWS; ++m)
    for (int i = 0; i < kQuads; ++i) total[m][i] = vld1q_f32(sums + m * kPanel + i * kQuad);
  for (int64_t g = 0; g < groups; ++g) {
    const auto* values = reinterpret_cast<const int8_t*>(block);
    const auto* correction = reinterpret_cast<const int32_t*>(values + ROWS * kGroup);
    const auto* scale = reinterpret_cast<const float*>(correction + ROWS);
    for (int i = 0; i < ahead.lines; ++i, ahead.memory += kLine)
      __builtin_prefetch(ahead.memory, 0, 2);
    int8x16_t q[ROWS][2];
    int32x4_t acc[ROWS][kQuads];
    for (int m = 0; m < ROWS; ++m) {
      for (int h = 0; h < 2; ++h) q[m][h] = vld1q_s8(values + m * kGroup + 16 * h);
      for (int i = 0; i < kQuads; ++i) acc[m][i] = vdupq_n_s32(OFFSETS ? 0 : correction[m]);
    }
    add_group<STORED, ROWS>(w, q, acc, std::make_integer_sequence<int, kSteps>());
    for (int i = 0; i < kQuads; ++i) {
      const float32x4_t ws = from_half(s + i * kQuad);
      for (int m = 0; m < ROWS; ++m)
        total[m][i] = vfmaq_f32(total[m][i], vcvtq_f32_s32(acc[m][i]), vmulq_n_f32(ws, scale[m]));
      if (!OFFSETS) continue;
      const float32x4_t offset = from_half(s + kPanel + i * kQuad);
      const auto* surplus = reinterpret_cast<const float*>(correction);
      for (int m = 0; m < ROWS; ++m)
        total[m][i] = vfmaq_n_f32(total[m][i], offset, surplus[m]);
    }
    w += group_bytes(width_of(STORED));
    s += OFFSETS ? 2 * kPanel : kPanel;
    block += ROWS * (kGroup + 8);
  }
  for (int m = 0; m < ROWS; ++m)
    for (int i = 0; i < kQuads; ++i) vst1q_f32(sums + m * kPanel + i * kQuad, total[m][i]);
}

template <Stored STORED, bool OFFSETS, int ROWS>
void row_tile(const Tile& tile, const uint8_t* block, Ahead ahead, float* sums) {
  for (int p = 0; p < tile.panels; ++p, sums += ROWS * kPanel)
    panel_tile<STORED, OFFSETS, ROWS>(tile.data + p * tile.panel_bytes,
                                      tile.scales + p * tile.panel_scales, block, tile.groups,
                                      p == 0 ? ahead : Ahead{nullptr, 0}, sums);
}

template <Stored STORED, bool OFFSETS>
void format_tile(const Tile& tile, const uint8_t* block, int rows, Ahead ahead, float* sums) {
  switch (rows) {
    case 1: row_tile<STORED, OFFSETS, 1>(tile, block, ahead, sums); break;
    case 2: row_tile<STORED, OFFSETS, 2>(tile, block, ahead, sums); break;
    case 3: row_tile<STORED, OFFSETS, 3>(tile, block, ahead, sums); break;
    default: row_tile<STORED, OFFSETS, 4>(tile, block, ahead, sums); break;
  }
}

void tile(const Tile& tile, const uint8_t* block, int rows, Ahead ahead, float* sums) {
  const bool offsets = tile.format.offsets;
  if (tile.format.bits == 8)
    format_tile<kEight, false>(tile, block, rows, ahead, sums);
  else if (tile.spread)
    (offsets ? format_tile<kBytes, true> : format_tile<kBytes, false>)(tile, block, rows, ahead,
                                                                       sums);
  else if (tile.format.bits == 5)
    (offsets ? format_tile<kFive, true> : format_tile<kFive, false>)(tile, block, rows, ahead,
                                                                     sums);
  else
    (offsets ? format_tile<kFour, true> : format_tile<kFour, false>)(tile, block, rows, ahead,
                                                                     sums);
}

}  // namespace

const LinearPath kNeonLinear = {kMaxRows, record_bytes, quantize, spread, tile};

}  // namespace omni
#endif
