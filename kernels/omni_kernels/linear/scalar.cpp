// Portable path: plain loops over the shared layout that compilers turn into NEON or SSE2.
#include <cmath>
#include <cstring>
#include <limits>

#include "linear.h"

namespace omni {

GroupScale quantize_group_scalar(const float* x, int count, int8_t* q) {
  uint32_t most = 0;  // as bits: NaN > infinity > every number
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  float amax;
  std::memcpy(&amax, &most, sizeof(amax));
  std::memset(q, 0, kGroup);
  if (most >= 0x7f800000u) return {std::numeric_limits<float>::quiet_NaN(), 0};
  if (amax < kTiny) return {0.0f, 0};
  const float inverse = 127.0f / amax;
  int32_t sum = 0;
  for (int i = 0; i < count; ++i) {
    const int32_t value = static_cast<int32_t>(std::nearbyint(x[i] * inverse));
    q[i] = static_cast<int8_t>(value);
    sum += value;
  }
  return {amax / 127.0f, sum};
}

namespace {

struct Record {
  int8_t q[kGroup];
  int32_t correction;
  float scale;
  float surplus;  // the correction of weights with offsets
};

int64_t record_bytes(Format, int) { return sizeof(Record); }

void quantize(const float* x, int64_t columns, int64_t groups, int, Format format, uint8_t* block) {
  auto* record = reinterpret_cast<Record*>(block);
  for (int64_t g = 0; g < groups; ++g, ++record) {
    const int64_t left = columns - g * kGroup;
    const int count = static_cast<int>(left < kGroup ? left : kGroup);
    const GroupScale group = quantize_group_scalar(x + g * kGroup, count, record->q);
    record->correction = format.offsets ? 0 : -zero_of(format.bits) * group.sum;
    record->scale = group.scale;
    record->surplus = group.scale * static_cast<float>(group.sum);
  }
}

float from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u;
  const uint32_t fraction = half & 1023u;
  float value;
  if (exponent == 0) {
    value = static_cast<float>(fraction) * 0x1p-24f;  // zero and subnormal
  } else {
    const uint32_t bits = ((exponent == 31 ? 255u : exponent + 112u) << 23) | (fraction << 13);
    std::memcpy(&value, &bits, sizeof(value));
  }
  return sign ? -value : value;
}

void spread(const uint8_t* data, int bits, int64_t groups, uint8_t* lines) {
  for (int64_t g = 0; g < groups; ++g, data += group_bytes(bits), lines += kSpread) {
    for (int i = 0; i < kHalf * kLine; ++i) {
      lines[i] = data[i] & 15;
      lines[kHalf * kLine + i] = data[i] >> 4;
    }
    if (bits == 4) continue;
    const uint8_t* fifth = data + kHalf * kLine;
    for (int step = 0; step < kSteps; ++step)
      for (int i = 0; i < kLine; ++i)
        lines[step * kLine + i] |= static_cast<uint8_t>((fifth[i] >> step & 1) << 4);
  }
}

void tile(const Tile& tile, const uint8_t* block, int, Ahead, float* sums) {
  const bool packed = tile.format.bits < 8 && !tile.spread;
  const int64_t w_stride = packed ? tile.format.group_bytes() : kSpread;
  const int64_t s_stride = tile.format.group_scales();
  for (int p = 0; p < tile.panels; ++p, sums += kPanel) {
    const uint8_t* w = tile.data + p * tile.panel_bytes;
    const uint16_t* s = tile.scales + p * tile.panel_scales;
    const auto* record = reinterpret_cast<const Record*>(block);
    for (int64_t g = 0; g < tile.groups; ++g, ++record, w += w_stride, s += s_stride) {
      uint8_t lines[kSpread];
      if (packed) spread(w, tile.format.bits, 1, lines);
      int32_t acc[kPanel];
      for (int32_t& value : acc) value = record->correction;
      for (int step = 0; step < kSteps; ++step) {
        const uint8_t* line = (packed ? lines : w) + step * kLine;
        const int8_t* q = record->q + step * kStep;
        for (int n = 0; n < kPanel; ++n)
          for (int j = 0; j < kStep; ++j) acc[n] += int32_t{line[n * kStep + j]} * int32_t{q[j]};
      }
      for (int n = 0; n < kPanel; ++n)
        sums[n] += static_cast<float>(acc[n]) * (from_half(s[n]) * record->scale);
      for (int n = 0; tile.format.offsets && n < kPanel; ++n)
        sums[n] += from_half(s[kPanel + n]) * record->surplus;
    }
  }
}

}  // namespace

const LinearPath kScalarLinear = {1, record_bytes, quantize, spread, tile};

}  // namespace omni
